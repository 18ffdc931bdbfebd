"""The parts: one function, one key and one word of the help each."""

from shared.config.sections import ASSESSMENTS, Assess
from shared.runs.assessment import Assessment
from stages.assess.parts import PARTS


def test_every_part_has_a_function_a_key_and_a_word_in_the_help():
    assert tuple(PARTS) == ASSESSMENTS
    about_parts = {"about", "seconds", "made_from", "failed", "hashes"}
    assert Assessment.__annotations__.keys() - about_parts == set(ASSESSMENTS)
    help_text = " ".join((Assess.__doc__ or "").split())
    assert f"parts: all, or some of {', '.join(ASSESSMENTS)}, separated by commas" in help_text
