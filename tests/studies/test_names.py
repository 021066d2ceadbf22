"""Names of folders: safe on every file system, and never two alike."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from unimetric.studies.names import slug, slugs


@given(st.text())
def test_a_slug_is_a_safe_file_name(name: str) -> None:
    made = slug(name)
    assert re.fullmatch(r"[a-z0-9._+-]{1,60}", made)
    assert not made.startswith((".", "-"))
    assert not made.endswith((".", "-"))


@given(st.lists(st.one_of(st.text(), st.sampled_from(["PUMA", "puma", "Puma!", "名", "名前", "", "."])), unique=True))
def test_no_two_names_share_a_folder(names: list[str]) -> None:
    made = slugs(names)
    assert list(made) == names
    assert len(set(made.values())) == len(names)


@given(st.lists(st.sampled_from(["a", "A", "b!", "b", "c"]), unique=True), st.text())
def test_a_name_added_at_the_end_changes_no_other(names: list[str], more: str) -> None:
    assert slugs(names).items() <= slugs([*names, more]).items() or more in names
