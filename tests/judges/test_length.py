from srpo_jax.judges.length import LengthJudge


def test_the_number_of_words_decides():
    a, b = ["one two", "one", "", "a b"], ["one", "one two three", "", "longer word"]
    assert LengthJudge("shorter").probabilities(["x"] * 4, a, b).tolist() == [0.0, 1.0, 0.5, 0.5]
    assert LengthJudge("longer").probabilities(["x"] * 4, a, b).tolist() == [1.0, 0.0, 0.5, 0.5]
    assert LengthJudge("longer", "control").name == "control"
