import subprocess

from srpo_jax.reporting import provenance


def test_facts_name_the_machine_the_versions_and_the_program():
    facts = dict(provenance.facts("1 cpu device(s)"))
    assert facts["machine"].startswith("1 cpu device(s), ")
    assert "numpy " in facts["versions"]
    assert facts["program"].startswith("srpo_jax ")


def test_a_commit_is_named_with_whether_anything_was_changed(tmp_path):
    assert provenance.commit(tmp_path) == "not in a Git repository"
    (tmp_path / "__init__.py").write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True, timeout=60)
    clean = provenance.commit(tmp_path)
    assert clean.startswith("commit ")
    assert len(clean) == len("commit ") + 12
    (tmp_path / "__init__.py").write_text("changed")
    assert provenance.commit(tmp_path) == f"{clean} with changes"
