"""The flow of a kernel of PTX: the lines that may run before and after each line."""

from __future__ import annotations

import re

# A copy writes at any time until it was waited for.
_SHARED_WRITE = r"st\.shared|stmatrix|cp\.async\.(?!commit)"
_SHARED_READ = r"ld\.shared|ldmatrix"
_REGISTER = r"%(?:rd|rs|r|f|p)\d+"
_WITHOUT_RESULT = r"st|bra|bar|barrier|cp|ret|exit|trap|red"
# These do more than to give a result, so they stay even if nothing reads it.
_WITH_EFFECT = rf"(?:{_WITHOUT_RESULT}|ld|ldmatrix|stmatrix|shfl|atom)\."


class Flow:
    """The lines of a kernel, by number, and the ways between them that were taken."""

    def __init__(self, lines: dict[int, str], executed: set[int]) -> None:
        self.lines = lines
        # A line that never ran was passed over, because its guard, which it reads, did not hold.
        self._running = {
            number: line if number in executed else "".join(re.findall(r"^@!?%p\d+", line))
            for number, line in lines.items()
        }
        labels = {line[:-1]: number for number, line in lines.items() if line.endswith(":")}
        self.after: dict[int, list[int]] = {number: [] for number in lines}
        self.before: dict[int, list[int]] = {number: [] for number in lines}
        for number, line in lines.items():
            is_guarded = line.startswith("@")
            if number not in executed and not is_guarded:
                continue
            target = re.match(r"(?:@!?%p\d+ )?bra(?:\.uni)? (\S+);", line)
            following = []
            if number + 1 in lines and not re.match(r"bra|ret;|exit;|trap;", line):
                following.append(number + 1)
            if target and number in executed:  # a branch that nobody took counts as not executed
                following.append(labels[target[1]])
            for each in following:
                self.after[number].append(each)
                self.before[each].append(number)

    def accesses(self, barrier: int, next_lines: dict[int, list[int]], until: str) -> set[str]:
        """Search `before` or `after` a barrier for accesses to shared memory, up to other barriers.

        Returns:
            "read" or "write" or both.
        """
        found, seen, waiting = set(), {barrier}, list(next_lines[barrier])
        while waiting:
            number = waiting.pop()
            if number in seen:
                continue
            seen.add(number)
            line = re.sub(r"^@!?%p\d+ ", "", self._running[number])
            if re.match(until, line):
                continue
            if re.match(_SHARED_WRITE, line):
                found.add("write")
            elif re.match(_SHARED_READ, line):
                found.add("read")
            waiting += next_lines[number]
        return found

    def unread_results(self) -> set[int]:
        """Lines that do no more than to give results which no line reads that runs later."""
        bits: dict[str, int] = {}
        accesses = {
            number: tuple(
                sum(1 << bits.setdefault(register, len(bits)) for register in set(registers))
                for registers in _registers(line)
            )
            for number, line in self._running.items()
            if re.search(_REGISTER, line)
        }
        needed = dict.fromkeys(self.lines, 0)  # before each line, a bit for each register
        unread: set[int] = set()
        changed = True
        while changed:
            changed = False
            unread.clear()
            for number in reversed(self.lines):
                after = 0
                for each in self.after[number]:
                    after |= needed[each]
                if number in accesses:
                    written, read = accesses[number]
                    line = self._running[number]
                    if written and not written & after and not re.match(_WITH_EFFECT, line):
                        unread.add(number)
                    # The register keeps its value if a guard does not hold.
                    after = (after if line.startswith("@") else after & ~written) | read
                changed |= after != needed[number]
                needed[number] = after
        return unread


def _registers(line: str) -> tuple[list[str], list[str]]:
    """Those that an instruction writes and those that it reads."""
    found = re.match(r"(?:@!?%p\d+ )?(?:\{ )?([\w.:]+)\s+(\{[^}]*\}|[^,;]*)(.*)", line)
    if not found or re.match(rf"(?:{_WITHOUT_RESULT})\b", found[1]):
        return [], re.findall(_REGISTER, line)
    guard = re.findall(_REGISTER, line[: found.start(1)])
    return re.findall(_REGISTER, found[2]), guard + re.findall(_REGISTER, found[3])
