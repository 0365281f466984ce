"""The constructs of the format that a random file uses, as short texts."""

from __future__ import annotations

from nola_forge import split, units_integers
from random_files import RandomFile
from random_sections import DEPENDENT, INTEGERS, POINTS, TRELLIS


def features(file: RandomFile) -> set[str]:
    """Return what a reader must know to decode a file."""
    top = split(file.data).top
    seen = {f"a base {'base' in top}", f"files below {len(file.references)}"}
    seen.add("streams" if top["streams"] else "no streams")
    seen |= {f"quantizer {q[0]} {q[1] if q[0] == TRELLIS else q[2] is not None}" for q in top["quantizers"]}
    seen |= {f"mask {bool(q[1][0])}" for q in top["quantizers"] if q[0] == DEPENDENT}
    seen |= {f"codec {codec}" for codec, *_ in top["sections"]}
    seen |= {"more than one rung" for _ in top["rungs"][1:]} | {"more than one block" for _ in top["blocks"][1:]}
    for record in file.records:
        kind = record.kind
        seen.add(f"basis {kind.basis}, form {kind.form}, {len(kind.lengths)} sides")
        for n, k in zip(kind.lengths, kind.num_basis, strict=True):
            seen.add(f"basis {kind.basis}, k {'<' if k < n else '=' if k == n else '>'} n")
            power = n & -n
            seen |= {f"block {min(power, 4096)}"} if kind.basis == 1 and power in (n, min(power, 4096)) else set()
        seen |= {"a unit that starts late" for start in record.starts if start} | {"no units"} - {
            "no units" * bool(record.starts)
        }
    if top["rungs"][1:] and not file.records:
        seen.add("rungs without coded records")
    late = [any(record.starts) for record in file.records if record.starts]
    seen |= {"a late unit between others" for i in range(1, len(late) - 1) if late[i] and not late[i - 1]}
    for integers in units_integers(file.data, file.known):
        seen |= {f"role {role}" for role, _ in integers}
    seen |= {f"dtype {top['kinds'][i][2]}" for i in top["records"] if top["kinds"][i][0] == 1}
    return seen | {f"drawn {top['kinds'][i][4]}" for i in top["records"] if top["kinds"][i][0] == 3}


def wanted_features() -> set[str]:
    """Return what the random files of a run of the tests must use among them."""
    wanted = {f"quantizer {kind} {table}" for kind in (POINTS, DEPENDENT) for table in (False, True)}
    wanted |= {f"quantizer {TRELLIS} {number}" for number in range(13)} | {f"quantizer {INTEGERS} False"}
    wanted |= {"mask False", "mask True", "a base True", "a base False"}
    wanted |= {f"codec {number}" for number in (0, 1, 2, 3, 4)} | {f"role {role}" for role in range(16)}
    wanted |= {f"basis {basis}, form {form}, 2 sides" for basis in (1, 2, 3) for form in (0, 1)}
    wanted |= {f"basis {basis}, form 0, 1 sides" for basis in (1, 2, 3)} | {"basis 1, form 2, 2 sides"}
    wanted |= {f"basis {basis}, k {how} n" for basis in (1, 2, 3) for how in "<=>" if (basis, how) != (1, ">")}
    wanted |= {f"block {1 << i}" for i in range(13)} | {f"drawn {method}" for method in range(3)}
    wanted |= {"more than one rung", "more than one block", "files below 1", "files below 2", "no units", "streams"}
    return wanted | {
        "a unit that starts late",
        "a late unit between others",
        "no streams",
        "rungs without coded records",
    }
