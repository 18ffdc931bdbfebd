"""The three stages of SimCLRv2; each reads artifact folders and writes one."""
