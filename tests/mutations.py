#!/usr/bin/env python3
"""Breaks the coordinator in many ways, one at a time, and expects its tests to see each.

    python3 tests/mutations.py [PART OF A NAME]

Works on a copy of the sources, and builds it apart from all else, in `~/.cache/forebay/mutations`: cargo takes what it has
built of one copy for what it would build of another. Prints a table; ends with 1 if a mutation survives, or no longer fits the sources.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
APPLY = "coordinator/src/run/apply.rs"
DECIDE = "coordinator/src/run/decide.rs"
WANTED = "coordinator/src/run/wanted.rs"
ASSIGN = "coordinator/src/run/assign.rs"
GANG = "coordinator/src/run/gang.rs"
RESTS = "coordinator/src/run/rests.rs"
REUSE = "coordinator/src/run/reuse.rs"
TASKS = "coordinator/src/run/tasks.rs"
WORKERS = "coordinator/src/run/workers.rs"
SENT = "coordinator/src/driver/workers.rs"
SESSION = "coordinator/src/driver/session.rs"
JOURNAL = "coordinator/src/journal.rs"

# What goes wrong, where, and how.
MUTATIONS = [
    ("what a task has not read is nobody's", RESTS,
     "self.rests.splits.extend(rest.iter().map(", "self.rests.splits.extend(rest.iter().skip(1).map("),
    ("the last part of what a task has not read is nobody's", RESTS,
     "self.tasks.add(0, u32::try_from(rest.len()).unwrap_or(u32::MAX));",
     "self.tasks.add(0, u32::try_from(rest.len()).unwrap_or(u32::MAX) / 2);"),
    ("what another attempt has read is read again", RESTS, "if open && task.phase == 0 {", "if task.phase == 0 {"),
    ("what was left is read by the task that left it", APPLY,
     "self.leave_rest(attempt.task, rest);", "self.leave_rest(TaskId { index: 0, ..attempt.task }, rest);"),
    ("a task may leave something where nobody reads it", DECIDE,
     "let whole = rest.is_empty() || self.config.resplit && attempt.task.phase == 0;",
     "let whole = rest.is_empty() || attempt.task.phase < 9;"),
    ("a gang begins with as many members as there are slots", GANG,
     "        if slots < all {\n            return Vec::new();\n        }", "        let all = all.min(slots);\n        if all == 0 {\n            return Vec::new();\n        }"),
    ("what a member has made counts before all have", GANG,
     "_ if at_work < all => vec![Event::GangBroke],", "_ if at_work < all && held > 0 => vec![Event::GangBroke],"),
    ("a gang begins again while members of its last try are held", GANG,
     "return if held == 0 { vec![Event::GangReady] }", "return if held < 2 { vec![Event::GangReady] }"),
    ("a member that was done is not begun again with its gang", GANG,
     "finished.into_iter().for_each(", "finished.into_iter().skip(1).for_each("),
    ("the others go on when a gang is broken", WANTED,
     "(None, true) => Share { version: u64::MAX - 1, held: &NOTHING },",
     "(None, true) => Share { version: worker.version, held: &worker.held },"),
    ("every failure of a broken gang uses up a try", APPLY, "_ if follows => {}", "_ if follows && task.failures > 9 => {}"),
    ("each member of a gang has tries of its own", GANG, "true => self.tasks.iter().map(", "true => self.tasks.iter().take(1).map("),
    ("a commit can be withdrawn", APPLY,
     "if self.task(task).is_none_or(|task| matches!(task.state, TaskState::Committed { .. })) {",
     "if self.task(task).is_none() {"),
    ("done is believed of anybody", DECIDE,
     "if self.holds(worker, *attempt).is_some() =>\n            {\n                let (attempt, outputs",
     "if self.task(attempt.task).is_some() && !worker.as_str().is_empty() =>\n            {\n                let (attempt, outputs"),
    ("a failure is believed of anybody", DECIDE,
     "Input::Failed { worker, attempt, failure } if self.holds(worker, *attempt).is_some() => {",
     "Input::Failed { worker: _, attempt, failure } if self.task(attempt.task).is_some() => {"),
    ("what anybody gives back is taken", DECIDE,
     "Input::GivenBack { worker, attempt } if self.holds(worker, *attempt).is_some() => {",
     "Input::GivenBack { worker: _, attempt } if self.task(attempt.task).is_some() => {"),
    ("what a worker never got is taken for held", DECIDE,
     "self.lost(worker, |attempt| !holds.contains(&attempt), at)",
     "self.lost(worker, |attempt| !holds.contains(&attempt) && at.0 == u64::MAX, at)"),
    ("what a worker still holds is given to others", DECIDE,
     "self.lost(worker, |attempt| !holds.contains(&attempt), at)",
     "self.lost(worker, |attempt| holds.len() < usize::MAX && attempt.number > 0, at)"),
    ("a new coordinator believes that its workers are there", DECIDE,
     "std::iter::once(Event::Opened { epoch: *epoch, at }).chain(absent).collect()",
     "std::iter::once(Event::Opened { epoch: *epoch, at }).chain(absent.take(0)).collect()"),
    ("an absent worker is waited for for ever", DECIDE,
     "let long = |since: Millis| at.0 >= since.0.saturating_add(ABSENT);",
     "let long = |since: Millis| at.0 >= since.0.saturating_add(u64::MAX);"),
    ("the end of one of two attempts decides", APPLY,
     "find(|holding| holding.attempt != attempt).cloned();",
     "find(|holding| holding.attempt.number == u32::MAX).cloned();"),
    ("failures are not counted", APPLY,
     "_ => task.failures = task.failures.saturating_add(1),", "_ => task.failures = task.failures.max(1),"),
    ("lost workers are not counted", APPLY,
     "task.losses = task.losses.saturating_add(u32::from(*lost))", "task.losses = task.losses.saturating_add(u32::from(*lost) * 0)"),
    ("a run that has ended goes on", DECIDE,
     "        if self.ended.is_some() {\n            return Vec::new();\n        }\n        let one",
     "        let one"),
    ("the output is published before all is staged", WANTED,
     "self.snapshot.is_some() && self.tasks.open() == 0", "self.planned && self.tasks.open() == 0"),
    ("what is being published is cancelled", DECIDE,
     "Input::Cancel if !self.cancelled && !self.is_complete() =>", "Input::Cancel if !self.cancelled =>"),
    ("an attempt that was reported in time is overdue", DECIDE,
     "running.filter(|attempt| !reported.contains(attempt)).collect()",
     "running.filter(|attempt| !reported.contains(attempt) || attempt.number > 0).collect()"),
    ("attempts of two epochs have the same name", REUSE,
     "AttemptId { task, number, epoch: self.epoch }", "AttemptId { task, number, epoch: forebay_jobs::id::Epoch(1) }"),
    ("two attempts have the same number", REUSE,
     "self.task(task).map_or(0, |task| task.attempts) + 1", "self.task(task).map_or(0, |task| task.failures) + 1"),
    ("a phase begins before earlier runs were searched", REUSE,
     "self.tasks.phase().filter(|phase| !self.is_to_be_sought(*phase))", "self.tasks.phase()"),
    ("earlier runs are searched for the first phase only", REUSE,
     "self.config.reuse && self.planned && phase >= self.sought", "self.config.reuse && self.planned && phase >= self.sought && phase == 0"),
    ("a run waits for a search that nobody makes", REUSE,
     "self.tasks.phase().filter(|phase| self.is_to_be_sought(*phase))", "self.tasks.phase().filter(|phase| *phase == 0 && self.is_to_be_sought(*phase))"),
    ("what was reused is done all the same", REUSE,
     "self.put(attempt.task, TaskState::Committed { attempt: *attempt, outputs: outputs.clone() });", "let _ = outputs;"),
    ("a second attempt goes to the worker of the first", ASSIGN,
     "find(|worker| **worker != holding.worker)?", "find(|worker| !worker.as_str().is_empty() || **worker != holding.worker)?"),
    ("what has begun is taken back", ASSIGN,
     "first.attempt == attempt && first.started.is_none()", "first.attempt == attempt"),
    ("what was just given is taken back", ASSIGN, "const UNBEGUN: u64 = 1_000;", "const UNBEGUN: u64 = 1;"),
    ("a task is begun a third time", ASSIGN,
     "if task.failures == 0 && task.attempts == attempt.number =>", "if task.attempts > 0 =>"),
    ("the other attempt of a committed task stays held", APPLY,
     "if !kept.contains(attempt) {", "if !kept.contains(attempt) && kept.len() == usize::MAX {"),
    ("a task that waits again is not found", TASKS,
     "TaskState::Ready(at) => self.waiting.insert((*at, id)),", "TaskState::Ready(at) => at.0 > 1_000_000 && self.waiting.insert((*at, id)),"),
    ("absent workers are given work", WORKERS,
     "        if worker.is_open() {\n            self.by_load.remove", "        {\n            self.by_load.remove"),
    ("what is done is sent again", SENT,
     "let assign: Vec<_> = held.difference(&known.sent).copied().collect();",
     "let assign: Vec<_> = held.iter().copied().collect();"),
    ("nothing is ever killed", SENT,
     "known.sent.iter().filter(|attempt| !settled(attempt)).copied().collect();",
     "known.sent.iter().filter(|attempt| !settled(attempt)).copied().take(0).collect();"),
    ("a worker is gone before what it kept was read", SENT,
     "known.stream.is_none() && known.checking.is_empty() && known.process == Process::EndedAndRead",
     "known.stream.is_none() && known.process != Process::Unknown"),
    ("reports are noted before they count", SENT,
     "let over = |attempt: &AttemptId| !held.contains(attempt) && known.ended.contains(attempt);",
     "let over = |attempt: &AttemptId| known.ended.contains(attempt);"),
    ("what a deposed coordinator appends counts", SESSION,
     "let Some(read) = read(epoch, limit)? else {", "let Some(read) = read(epoch, limit.filter(|_| !headed))? else {"),
    ("a journal of a torn group is believed", JOURNAL, "if checksum(content) != crc {", "if checksum(content) == 0 && crc == 0 {"),
    ("a group cut off by a crash is damage", JOURNAL,
     "let Some((content, after)) = body.split_at_checked(length as usize) else { break };",
     "let Some((content, after)) = body.split_at_checked(length as usize) else { return Err(wrong(rest)) };"),
]


def test(copy: Path, env: dict, limit: float) -> tuple[str, float]:
    """What the tests say of the sources as they are: `caught` with the first test that failed, or `survives`."""
    command = ["cargo", "test", "--quiet", "--locked", "-p", "forebay-coordinator", "--lib"]
    begun = time.monotonic()
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=copy, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as tests:
        try:
            out, errors = tests.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(tests.pid, signal.SIGKILL)
            return "caught: they do not end", time.monotonic() - begun
    took = time.monotonic() - begun
    if "could not compile" in errors:
        return "does not compile: " + errors.split("error", 1)[1][:300], took
    if tests.returncode == 0:
        return "survives", took
    failed = re.findall(r"^    ([\w:]+)$", out, re.MULTILINE)
    return f"caught: {', '.join(sorted(set(failed))) or 'aborted'}", took


def main() -> int:
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    target = str(Path.home() / ".cache/forebay/mutations")
    env = os.environ | {"CARGO_TARGET_DIR": target, "CARGO_INCREMENTAL": "0", "RUST_BACKTRACE": "0"}
    env |= {"PROPTEST_MAX_SHRINK_ITERS": "0"}
    bad = 0
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "forebay"
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
        for name in filter(lambda name: (ROOT / name).is_file(), listed.stdout.splitlines()):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            # With the time of now, so that nothing built before is taken for built of it.
            shutil.copy(ROOT / name, copy / name)
        print("| mutation | s | tests |\n|---|---:|---|")
        verdict, took = test(copy, env, 1800)
        print(f"| none | {took:.0f} | {verdict} |", flush=True)
        if verdict != "survives":
            return 1
        for name, file, find, replace in MUTATIONS:
            if part not in name:
                continue
            text = (copy / file).read_text()
            if text.count(find) != 1:
                verdict, took = f"fits {text.count(find)} places of {file}", 0
            else:
                (copy / file).write_text(text.replace(find, replace))
                verdict, took = test(copy, env, 90)
                (copy / file).write_text(text)
                # What one mutation fails with is none of the next one's business.
                shutil.rmtree(copy / "coordinator/proptest-regressions", ignore_errors=True)
            bad += not verdict.startswith("caught")
            print(f"| {name} | {took:.0f} | {verdict} |", flush=True)
    print(f"\n{bad} of them are not caught")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
