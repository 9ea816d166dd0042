"""What is computed once: by hand."""

from __future__ import annotations

from aig.method.evaluations import Mix, Row, count, evaluations, first, parted


def test_a_mixed_image_asks_both_models_in_both_branches():
    base, tuned = evaluations([Mix(0.5, "t")], [0], 2)
    assert base == [Row(None, 0), Row(None, 1)] and tuned == [Row("t", 0), Row("t", 1)]


def test_a_model_with_share_0_is_not_asked():
    base, tuned = evaluations([Mix(0.0, "t"), Mix(1.0, "t")], [0, 1], 1)
    assert base == [Row(None, 0), None] and tuned == [None, Row("t", 1)]
    assert count(base) == count(tuned) == 1


def test_images_that_are_one_share_rows_unless_their_models_differ():
    parts = [Mix(1.0, "t"), Mix(1.0, "t"), Mix(1.0, "u"), Mix(0.5, "u")]
    base, tuned = evaluations(parts, [0, 0, 0, 0], 2)
    assert count(base) == 2 and count(tuned) == 4
    assert parted(parts, [0, 0, 0, 0], 2) == [0, 0, 2, 3]


def test_the_base_does_not_part_images_whose_tuned_models_differ():
    assert parted([Mix(0.0, "t"), Mix(0.0, "u")], [0, 0], 2) == [0, 0]


def test_without_guidance_the_branch_with_the_prompt_answers_for_both():
    parts = [Mix(1.0, "t"), Mix(1.0, "t", guided=False)]
    _, tuned = evaluations(parts, [0, 0], 2)
    assert tuned == [Row("t", 0), Row("t", 2), Row("t", 2), Row("t", 2)]
    assert parted(parts, [0, 0], 2) == [0, 1]
    assert parted(parts, [0, 0], 1) == [0, 0]  # there is no guidance to be switched off


def test_another_text_parts_only_the_branch_with_the_prompt():
    parts = [Mix(1.0, "t"), Mix(1.0, "t", text="noise")]
    _, tuned = evaluations(parts, [0, 0], 2)
    assert tuned == [Row("t", 0), Row("t", 0), Row("t", 2), Row("t", 3)]
    assert parted(parts, [0, 0], 2) == [0, 1]


def test_first():
    assert first("abacb") == [0, 1, 0, 3, 1]
