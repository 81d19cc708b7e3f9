//! What is compiled into the program: the same for every cut, and its failures say where.

use super::{
    super::native::{
        BoxError, Column, Emit, Job, Map, Mapped, NativeError, Natives, Record, Reduce, Result, Rows, Values, decode,
        execute,
    },
    *,
};

/// Maps and reduces as it is told.
struct By<F>(F);

impl<F: FnMut(Record<'_>, &mut Emit<'_>) -> Result> Map for By<F> {
    fn map(&mut self, record: Record<'_>, out: &mut Emit<'_>) -> Result {
        self.0(record, out)
    }
}

impl<F: FnMut(&[u8], &mut Values<'_>, &mut Rows<'_>) -> Result> Reduce for By<F> {
    fn reduce(&mut self, key: &[u8], values: &mut Values<'_>, out: &mut Rows<'_>) -> Result {
        self.0(key, values, out)
    }
}

fn words(record: Record<'_>, out: &mut Emit<'_>) -> Result {
    record.text()?.split_ascii_whitespace().for_each(|word| out.emit(word, (1_u64, record.offset)));
    Ok(())
}

/// How many values there are, and the sum of their counts.
fn sums(key: &[u8], values: &mut Values<'_>, out: &mut Rows<'_>) -> Result {
    let sum: u64 = values.of::<(u64, u64)>().map(|(count, _)| count).sum();
    out.row(&[key.into(), sum.into()]);
    Ok(())
}

fn columns() -> [Column; 2] {
    [Column::text("word"), Column::uint("count")]
}

fn fixture(job: Job) -> Fixture {
    let this = Fixture::new("map = { native = 'job' }");
    Fixture { natives: Natives::new([job]).unwrap(), ..this }
}

impl Fixture {
    fn native<T>(&self, input: TaskInput, budget: usize, work: impl Fn(&TaskContext<'_>, &TaskOutput) -> T) -> T {
        let job = self.natives.get("job").unwrap();
        self.task(input, |ctx| work(ctx, &execute(ctx, job, 2, budget).unwrap()))
    }

    /// What a whole run of one split over these texts fails with.
    fn failure(&self, texts: &[&str]) -> String {
        let put = |(n, text): (usize, &&str)| {
            let Cuttable { key, path, size, .. } = self.put(&format!("{n}.txt"), text.as_bytes());
            Piece { key, path, size, partial: false, part: Part::Whole }
        };
        let split = Split { pieces: texts.iter().enumerate().map(put).collect() };
        let mapped = match self.task(TaskInput::Split(split), |ctx| execute_by(ctx, &self.natives)) {
            Ok(output) => output.files,
            Err(error) => return told(&error),
        };
        let reduce = |file| self.task(TaskInput::Shuffle(vec![file]), |ctx| execute_by(ctx, &self.natives));
        let failed = self.outputs(&mapped).into_iter().find_map(|file| reduce(file).err());
        told(&failed.expect("one of its tasks fails"))
    }
}

fn execute_by(ctx: &TaskContext<'_>, natives: &Natives) -> std::result::Result<TaskOutput, TaskError> {
    super::execute(ctx, natives)
}

/// As a worker reports it.
fn told(error: &TaskError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn its_output_is_the_same_for_every_cut_and_every_budget_combined_or_not(
        (texts, size, budget) in datasets(), combined in any::<bool>(),
    ) {
        let mapped = Job::named("job").map(|_| Ok(By(words)));
        let mapped = match combined {
            true => mapped.combine(|some: (u64, u64), more: (u64, u64)| (some.0 + more.0, some.1)),
            false => mapped,
        };
        let this = fixture(mapped.reduce(columns(), |_| Ok(By(sums))));
        let objects: Vec<_> =
            texts.iter().enumerate().map(|(n, text)| this.put(&format!("{n}.txt"), text.as_bytes())).collect();
        let splits = split(&objects, Cut::Bytes, Size::Bytes(size));
        let mapped: Vec<_> = splits.into_iter().map(|split| {
            this.native(TaskInput::Split(split), budget, |ctx, output| {
                match budget {
                    0 => assert_eq!(runs(ctx) > 0, !output.files.is_empty()),
                    200 => {}
                    _ => assert_eq!(runs(ctx), 0),
                }
                output.files.clone()
            })
        }).collect();
        prop_assert_eq!(this.reduced(&mapped), counted(&texts));
        for files in mapped.iter().filter(|_| combined) {
            // Once for each key of the task, whatever was spilled.
            for file in this.outputs(files) {
                let mut keys = Vec::new();
                let take = |key: &[u8], _: &[u8]| { keys.push(key.to_vec()); Ok(()) };
                this.task(TaskInput::Split(Split::default()), |ctx| shuffle::merge(ctx, &[file], take).unwrap());
                prop_assert!(keys.is_sorted_by(|a, b| a < b));
            }
        }
    }
}

#[test]
fn a_reduce_may_leave_values_and_sees_those_of_its_key_in_the_order_of_the_dataset() {
    let take = |key: &[u8], values: &mut Values<'_>, out: &mut Rows<'_>| {
        let wanted = match key {
            b"none" => 0,
            b"one" => 1,
            _ => 9,
        };
        let offsets: Vec<_> = values.of::<(u64, u64)>().take(wanted).map(|(_, offset)| offset.to_string()).collect();
        out.row(&[key.into(), (&offsets.join(" ")).into()]);
        Ok(())
    };
    let columns = [Column::text("word"), Column::text("offsets")];
    let this = fixture(Job::named("job").map(|_| Ok(By(words))).reduce(columns, move |_| Ok(By(take))));
    let object = this.put("x.txt", b"none one all\nall one none\none none all\n");
    let [split] = &split(&[object], Cut::File, Size::Each)[..] else { panic!() };
    let mapped = this.native(TaskInput::Split(split.clone()), 1 << 20, |_, output| output.files.clone());
    let mut rows: Vec<_> = this.reduced(&[mapped]).concat().lines().map(str::to_owned).collect();
    rows.sort();
    assert_eq!(rows, ["all,0 13 26", "none,", "one,0", "word,offsets", "word,offsets"]);
}

#[test]
fn what_fails_says_where_and_why() {
    let is_bad = |record: &Record<'_>| record.starts_with(b"bad");
    let map = move |how: fn()| {
        move |record: Record<'_>, out: &mut Emit<'_>| {
            if is_bad(&record) {
                how();
                return Err("it is bad".into());
            }
            words(record, out)
        }
    };
    let mapped =
        |how: fn()| fixture(Job::named("job").map(move |_| Ok(By(map(how)))).reduce(columns(), |_| Ok(By(sums))));
    let texts = ["good\ngood", "good\nbad\ngood\n"];
    let at = "the map of `job` failed at byte 5 of `1.txt`";
    assert_eq!(mapped(|| ()).failure(&texts), format!("{at}: it is bad"));
    assert_eq!(mapped(|| panic!("number {}", 7)).failure(&texts), format!("{at}: it panicked: number 7"));
    assert_eq!(mapped(|| std::panic::panic_any(7)).failure(&texts), format!("{at}: it panicked: it does not say why"));
    let reduced = |reduce: fn(&[u8], &mut Values<'_>, &mut Rows<'_>) -> Result| {
        fixture(Job::named("job").map(|_| Ok(By(words))).reduce(columns(), move |_| Ok(By(reduce))))
            .failure(&["a\nb\n"])
    };
    let at = "the reduce of `job` failed at the key `";
    assert_eq!(reduced(|_, _, _| Err("no".into())), format!("{at}a`: no"));
    assert_eq!(reduced(|_, _, _| panic!("boom")), format!("{at}a`: it panicked: boom"));
    assert_eq!(
        reduced(|_, values, _| values.of::<u32>().next().map(drop).ok_or("without".into())),
        format!("{at}a`: 16 bytes are no u32"),
        "before what the code makes of it"
    );
    assert_eq!(
        reduced(|key, _, out| {
            out.row(&[key.into()]);
            Ok(())
        }),
        format!("{at}a`: a row has 1 cells, and the columns are word, count")
    );
    assert_eq!(
        reduced(|key, _, out| {
            out.row(&[key.into(), (-1_i64).into()]);
            Ok(())
        }),
        format!("{at}a`: the column `count` is of UInt64, and a row has Int(-1) there")
    );
    let job = || Job::named("job").map(|_| Ok(By(words)));
    let combined = |mapped: Mapped| fixture(mapped.reduce(columns(), |_| Ok(By(sums)))).failure(&["a a"]);
    let at = "the combine of `job` failed at a value";
    assert_eq!(combined(job().combine(|_: u64, more: u64| more)), format!("{at}: 16 bytes are no u64"));
    let panics = |_: (u64, u64), _| panic!("too much");
    assert_eq!(combined(job().combine(panics)), format!("{at}: it panicked: too much"));
}

/// It has no state but that it is being made.
fn not_made<T>(why: &'static str) -> Result<By<T>> {
    Err(BoxError::from(why))
}

type AMap = fn(Record<'_>, &mut Emit<'_>) -> Result;

#[test]
fn what_cannot_be_made_is_told_before_a_run_and_by_a_task() {
    let this = fixture(Job::named("job").map(|_| not_made::<AMap>("no model")).reduce(columns(), |_| Ok(By(sums))));
    let expected = "the map of `job` failed when it is made: no model";
    assert_eq!(this.failure(&["a"]), expected);
    let NativeError::NotMade(error) = this.natives.check(&this.job).unwrap_err() else { panic!() };
    assert_eq!(told(&error), expected);
    let job = Job::named("job").map(|_| Ok(By(words))).reduce(columns(), |params| {
        let _: u64 = params.get("least")?;
        Ok(By(sums))
    });
    let mut this = fixture(job);
    let problem = |this: &Fixture| match this.natives.check(&this.job) {
        Err(NativeError::NotMade(error)) => told(&error),
        other => panic!("{other:?}"),
    };
    let at = "the reduce of `job` failed when it is made";
    assert_eq!(problem(&this), format!("{at}: there is no parameter `least`: add it to [params]"));
    this.job.params.insert("least".to_owned(), "few".to_owned());
    assert_eq!(problem(&this), format!("{at}: the parameter `least` is `few`: invalid digit found in string"));
    this.job.params.insert("least".to_owned(), "3".to_owned());
    this.natives.check(&this.job).unwrap();
}

#[test]
fn jobs_that_no_job_file_could_call_for_are_refused() {
    let job = |name| Job::named(name).map(|_| Ok(By(words))).reduce(columns(), |_| Ok(By(sums)));
    let error = |jobs: Vec<Job>| Natives::new(jobs).unwrap_err().to_string();
    assert_eq!(error(vec![job("a"), job("b"), job("a")]), "two native jobs are named `a`");
    assert!(error(vec![job("a b")]).starts_with("`a b` is no name"));
    let with = |columns: Vec<Column>| Job::named("a").map(|_| Ok(By(words))).reduce(columns, |_| Ok(By(sums)));
    assert_eq!(error(vec![with(vec![])]), "the columns of the native job `a` are none");
    let twice = vec![Column::text("x"), Column::int("x")];
    assert_eq!(error(vec![with(twice)]), "the columns of the native job `a` have two `x`");
    let this = fixture(job("other"));
    let absent = "the native job `job` is not compiled into this program, which has other";
    assert_eq!(this.natives.check(&this.job).unwrap_err().to_string(), absent);
    assert_eq!(this.failure(&["a"]), absent);
}

#[test]
fn an_attempt_that_is_to_end_does() {
    let this = fixture(Job::named("job").map(|_| Ok(By(words))).reduce(columns(), |_| Ok(By(sums))));
    let object = this.put("x.txt", "a\n".repeat(5000).as_bytes());
    let [split] = &split(&[object], Cut::File, Size::Each)[..] else { panic!() };
    let mapped = this.native(TaskInput::Split(split.clone()), 1 << 20, |_, output| output.files.clone());
    for input in [TaskInput::Split(split.clone()), TaskInput::Shuffle(this.outputs(&mapped))] {
        let ended = CancellationToken::new();
        ended.cancel();
        let error = this.task(input, |ctx| {
            execute_by(&TaskContext { cancel: &ended, cluster: ctx.cluster.clone(), ..*ctx }, &this.natives)
        });
        assert!(matches!(error, Err(TaskError::Cancelled)), "{error:?}");
    }
}

#[test]
fn a_key_is_what_it_was_made_of() {
    let map = |record: Record<'_>, out: &mut Emit<'_>| {
        out.emit(record.text()?.parse::<i64>()?, ());
        Ok(())
    };
    let reduce = |key: &[u8], _: &mut Values<'_>, out: &mut Rows<'_>| {
        let number: i64 = decode(key)?;
        out.row(&[number.into(), Some(number > 0).into(), None::<f64>.into()]);
        Ok(())
    };
    let columns = [Column::int("n"), Column::bool("positive"), Column::float("nothing")];
    let this = fixture(Job::named("job").map(move |_| Ok(By(map))).reduce(columns, move |_| Ok(By(reduce))));
    let object = this.put("x.txt", b"5\r\n-3\n700\n-20\n");
    let [split] = &split(&[object], Cut::File, Size::Each)[..] else { panic!() };
    let mapped = this.native(TaskInput::Split(split.clone()), 1 << 20, |_, output| output.files.clone());
    let parts = this.reduced(&[mapped]);
    let numbers: Vec<Vec<i64>> = parts
        .iter()
        .map(|part| part.lines().skip(1).map(|row| row.split(',').next().unwrap().parse().unwrap()).collect())
        .collect();
    assert!(numbers.iter().all(|part| part.is_sorted()) && numbers.concat().len() == 4, "{parts:?}");
    assert!(parts.concat().contains("-20,false,\n") && parts.concat().contains("700,true,\n"));
}
