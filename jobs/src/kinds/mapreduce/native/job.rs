//! What a program brings: its jobs by their names, and how their maps and reduces are made.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    str::FromStr,
    sync::Arc,
};

use super::{
    Decode, Encode, Map, Reduce, Result,
    encode::Encoder,
    map::Mapping,
    step::{Panicked, Step},
};
use crate::{
    kinds::{
        TaskError,
        mapreduce::{rows::Column, shuffle::Fold},
    },
    spec::{JobSpec, parse::is_name},
};

/// The longest name of a job.
const LONGEST: usize = 100;

/// The parameters of a run: `[params]` of its job file, and `--set`.
#[derive(Clone, Copy, Debug)]
pub struct Params<'a>(pub(super) &'a BTreeMap<String, String>);

impl Params<'_> {
    /// One of them, as text, or as a number and whatever else can be read from text.
    ///
    /// # Errors
    /// There is none of this name, or it is nothing of the kind.
    pub fn get<T: FromStr<Err: fmt::Display>>(&self, name: &str) -> Result<T> {
        let text = self.0.get(name).ok_or_else(|| format!("there is no parameter `{name}`: add it to [params]"))?;
        text.parse().map_err(|error| format!("the parameter `{name}` is `{text}`: {error}").into())
    }
}

pub(super) type MakeMap = dyn Fn(Params<'_>) -> Result<Box<dyn Mapping>> + Send + Sync;
pub(super) type MakeReduce = dyn Fn(Params<'_>) -> Result<Box<dyn Reduce>> + Send + Sync;

/// A map and a reduce that are compiled into the program, under the name by which a job file calls for them:
/// `map = { native = "requests" }`.
///
/// ```
/// use forebay_jobs::{Column, Emit, Job, Map, Record, Reduce, Result, Rows, Values};
///
/// struct Longer { than: usize }
///
/// impl Map for Longer {
///     fn map(&mut self, record: Record<'_>, out: &mut Emit<'_>) -> Result {
///         if record.len() > self.than {
///             out.emit(record.object, 1_u64);
///         }
///         Ok(())
///     }
/// }
///
/// struct Total;
///
/// impl Reduce for Total {
///     fn reduce(&mut self, key: &[u8], values: &mut Values<'_>, out: &mut Rows<'_>) -> Result {
///         out.row(&[key.into(), values.of::<u64>().sum::<u64>().into()]);
///         Ok(())
///     }
/// }
///
/// let job = Job::named("long-lines")
///     .map(|params| Ok(Longer { than: params.get("than")? }))
///     .combine(|some: u64, more: u64| some + more)
///     .reduce([Column::text("object"), Column::uint("lines")], |_| Ok(Total));
/// assert_eq!(job.name(), "long-lines");
/// ```
pub struct Job {
    name: String,
    pub(super) columns: Vec<Column>,
    pub(super) make_map: Box<MakeMap>,
    pub(super) fold: Option<Box<Fold>>,
    pub(super) make_reduce: Box<MakeReduce>,
}

impl Job {
    /// Begins one. A name has 1 to 100 letters, digits, `.`, `_`, `-`.
    pub fn named(name: &str) -> Named {
        Named { name: name.to_owned() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("name", &self.name).field("columns", &self.columns).finish_non_exhaustive()
    }
}

/// A job that has a name, and lacks all else.
#[derive(Debug)]
pub struct Named {
    name: String,
}

impl Named {
    /// How a map is made: once an attempt at a task, and so in one thread; also to check a job before its run.
    pub fn map<M: Map + 'static>(self, make: impl Fn(Params<'_>) -> Result<M> + Send + Sync + 'static) -> Mapped {
        let make_map = Box::new(move |params: Params<'_>| Ok(Box::new(make(params)?) as Box<dyn Mapping>));
        Mapped { name: self.name, make_map, fold: None }
    }
}

/// A job that lacks a reduce.
pub struct Mapped {
    name: String,
    make_map: Box<MakeMap>,
    fold: Option<Box<Fold>>,
}

impl Mapped {
    /// How two values of one key become one, before they are written for reduce tasks. It is used between neighbours, in
    /// any order, some times or never: it has to be associative, and what it gives must be a value as the map emits them.
    #[must_use]
    pub fn combine<V: Encode + Decode>(mut self, combine: impl Fn(V, V) -> V + Send + Sync + 'static) -> Self {
        let name = self.name.clone();
        self.fold = Some(Box::new(move |held, value| {
            let combined = catch_unwind(AssertUnwindSafe(|| {
                let combined = combine(V::decode(held)?, V::decode(value)?);
                held.clear();
                combined.encode(&mut Encoder(held));
                Ok(())
            }));
            let combined = combined.unwrap_or_else(|panic| Err(Panicked::of(&*panic).into()));
            combined.map_err(|source| TaskError::native(&name, "combine", "at a value", source))
        }));
        self
    }

    /// The columns of what is published, and how a reduce is made: once an attempt at a task.
    pub fn reduce<R: Reduce + 'static>(
        self,
        columns: impl Into<Vec<Column>>,
        make: impl Fn(Params<'_>) -> Result<R> + Send + Sync + 'static,
    ) -> Job {
        let make_reduce = Box::new(move |params: Params<'_>| Ok(Box::new(make(params)?) as Box<dyn Reduce>));
        let Self { name, make_map, fold } = self;
        Job { name, columns: columns.into(), make_map, fold, make_reduce }
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapped").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The jobs that are compiled into a program.
#[derive(Clone, Debug, Default)]
pub struct Natives(Arc<BTreeMap<String, Job>>);

/// Why a program's jobs are not as they should be, or are not those that are wanted.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// No job file could call for it.
    #[error("`{name}` is no name of a native job: it takes 1 to {LONGEST} letters, digits, `.`, `_` or `-`")]
    BadName {
        /// The name.
        name: String,
    },
    /// Two have one name.
    #[error("two native jobs are named `{name}`")]
    Twice {
        /// The name.
        name: String,
    },
    /// Its output could not be written.
    #[error("the columns of the native job `{name}` {what}")]
    BadColumns {
        /// The job.
        name: String,
        /// What is wrong with them.
        what: String,
    },
    /// It is not there.
    #[error("the native job `{name}` is not compiled into this program, which has {}", listed(has))]
    Absent {
        /// What the job file calls for.
        name: String,
        /// What there is.
        has: BTreeSet<String>,
    },
    /// Its map or its reduce cannot be made.
    #[error(transparent)]
    NotMade(TaskError),
}

/// Names for a message.
pub fn listed(names: &BTreeSet<String>) -> String {
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
    }
}

impl Natives {
    /// Of these jobs.
    ///
    /// # Errors
    /// A name that is none, or that two have; columns that cannot be written.
    pub fn new(jobs: impl IntoIterator<Item = Job>) -> std::result::Result<Self, NativeError> {
        let mut all = BTreeMap::new();
        for job in jobs {
            let name = job.name.clone();
            if !is_name(&name, LONGEST) {
                return Err(NativeError::BadName { name });
            }
            let mut names = BTreeSet::new();
            let twice = job.columns.iter().map(Column::name).find(|column| !names.insert(*column));
            let wrong = twice.map(|twice| format!("have two `{twice}`"));
            if let Some(what) = wrong.or_else(|| job.columns.is_empty().then(|| "are none".to_owned())) {
                return Err(NativeError::BadColumns { name, what });
            }
            if all.insert(name.clone(), job).is_some() {
                return Err(NativeError::Twice { name });
            }
        }
        Ok(Self(Arc::new(all)))
    }

    /// Their names.
    pub fn names(&self) -> BTreeSet<String> {
        self.0.keys().cloned().collect()
    }

    /// The job of a name.
    ///
    /// # Errors
    /// [`NativeError::Absent`]
    pub fn get(&self, name: &str) -> std::result::Result<&Job, NativeError> {
        self.0.get(name).ok_or_else(|| NativeError::Absent { name: name.to_owned(), has: self.names() })
    }

    /// Whether what a job file calls for is there, and its map and reduce can be made with the run's parameters.
    ///
    /// # Errors
    /// It is not, or they cannot.
    pub fn check(&self, job: &JobSpec) -> std::result::Result<(), NativeError> {
        let Some(native) = job.native().map(|name| self.get(name)).transpose()? else { return Ok(()) };
        let params = Params(&job.params);
        let map = || (native.make_map)(params).map(drop);
        let reduce = || (native.make_reduce)(params).map(drop);
        let made = |step: Step, make: &dyn Fn() -> Result| {
            let made = catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|panic| Err(Panicked::of(&*panic).into()));
            made.map_err(|source| NativeError::NotMade(step.failed(native, "when it is made", source)))
        };
        made(Step::Map, &map)?;
        made(Step::Reduce, &reduce)
    }
}
