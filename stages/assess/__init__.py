"""Optional stage 4: how good are the features and the classifiers of a run?"""
