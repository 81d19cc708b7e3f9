//! From any failure to one message on standard error, and to the exit code.

use std::{error::Error, process::ExitCode};

use forebay_coordinator::{driver::CoordinateError, rundir::RunDirError, submit::SubmitError};
use forebay_datasets::{
    room::RoomError,
    snapshot::SnapshotError,
    source::{ErrorKind, SourceError},
    stage::StageError,
    volume::VolumeError,
};
use forebay_jobs::{host::Unfit, id::RunId, kinds::mapreduce::native::NativeError, spec::parse::SpecError};
use forebay_worker::{LinkError, WorkerError, logs::LogError};
use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceSpan};
use rustix::io::Errno;

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    TasksFailed = 1,
    Usage = 2,
    NotFound = 3,
    OutOfReach = 4,
    CannotRun = 5,
    TimedOut = 124,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What a command ends with in place of a result.
#[derive(Debug)]
pub struct CliError {
    exit: Exit,
    message: String,
    help: Option<String>,
    place: Option<Box<(NamedSource<String>, SourceSpan)>>,
}

impl CliError {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), help: None, place: None }
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub fn runtime(error: std::io::Error) -> Self {
        Self::new(Exit::OutOfReach, format!("cannot start: {error}"))
    }

    /// A problem in a job file, shown where it is.
    pub fn in_job(name: &str, text: String, error: SpecError) -> Self {
        let source = NamedSource::new(name, text).with_language("TOML");
        Self {
            exit: Exit::Usage,
            message: error.message,
            help: error.help,
            place: error.span.map(|span| Box::new((source, span.into()))),
        }
    }

    /// The same, shown where the job's query names what is not there.
    pub fn in_query(self, name: &str, text: &str) -> Self {
        let word = |message: &str| {
            let (_, rest) = message.split_once("No field named ").or_else(|| message.split_once("table '"))?;
            let path = rest.split([' ', '\'']).next()?.trim_end_matches('.');
            path.rsplit('.').next().map(|word| word.trim_matches('"').to_owned())
        };
        let place = word(&self.message).and_then(|word| {
            let query = text.find("query")?;
            let is_part = |c: char| c.is_alphanumeric() || c == '_';
            let whole = |at: usize| {
                !text[..at].ends_with(is_part) && !text[at + word.len()..].starts_with(is_part) && !word.is_empty()
            };
            let at = text[query..].match_indices(&word).map(|(at, _)| query + at).find(|at| whole(*at))?;
            Some(SourceSpan::from(at..at + word.len()))
        });
        let source = || NamedSource::new(name, text.to_owned()).with_language("TOML");
        Self { place: self.place.or_else(|| Some(Box::new((source(), place?)))), ..self }
    }

    /// What stopped a coordinator; the run is there to be resumed, unless it had not begun.
    pub fn coordinating(error: CoordinateError, run: &RunId) -> Self {
        let resume = format!("nothing is lost: `forebay resume {run}` goes on");
        match error {
            CoordinateError::NeverBegan(error) => Self::coordinating_plainly(*error),
            CoordinateError::RunDir(error @ RunDirError::NotFound { .. }) => error.into(),
            CoordinateError::Interrupted => Self::new(Exit::Interrupted, "interrupted").help(resume),
            CoordinateError::Deposed => Self::caused(Exit::OutOfReach, &error)
                .help(format!("`forebay wait {run}` waits for its end, and `forebay resume {run}` goes on")),
            CoordinateError::SnapshotGone { .. } => Self::caused(Exit::NotFound, &error).help(format!(
                "stage the same content again and `forebay resume {run}`, or end it with `forebay cancel {run}`"
            )),
            error => {
                let error = Self::coordinating_plainly(error);
                Self { message: format!("run `{run}` is interrupted: {}", error.message), ..error.help(resume) }
            }
        }
    }

    fn coordinating_plainly(error: CoordinateError) -> Self {
        match error {
            CoordinateError::Stage(error) => error.into(),
            CoordinateError::Volume(error) => error.into(),
            CoordinateError::RunDir(error) => error.into(),
            error @ CoordinateError::SnapshotGone { .. } => Self::caused(Exit::NotFound, &error),
            error @ CoordinateError::NoPlan(_) => Self::caused(Exit::Usage, &error)
                .help("correct the job file; the dataset is staged, the run is not there"),
            CoordinateError::Unfit(error) => error.into(),
            error => Self::caused(Exit::OutOfReach, &error),
        }
    }

    /// What to do about it.
    pub fn advice(&self) -> Option<String> {
        self.help.clone()
    }

    pub fn code(&self) -> Exit {
        self.exit
    }

    /// With `--json` an object, so that a script need not read prose.
    pub fn print(&self, json: bool) {
        if json {
            let object = serde_json::json!({
                "version": 1, "error": { "message": self.message, "help": self.help, "code": self.exit as u8 },
            });
            println!("{object}");
            return;
        }
        let terminal = rustix::termios::isatty(std::io::stderr());
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let theme = match (terminal, no_color) {
            (true, false) => GraphicalTheme::unicode(),
            (true, true) => GraphicalTheme::unicode_nocolor(),
            (false, _) => GraphicalTheme::none(),
        };
        let mut text = String::new();
        let width =
            rustix::termios::tcgetwinsize(std::io::stderr()).map_or(100, |size| usize::from(size.ws_col).max(40));
        match GraphicalReportHandler::new_themed(theme).with_width(width).render_report(&mut text, self) {
            Ok(()) => eprint!("{text}"),
            Err(_) => eprintln!("error: {}", self.message),
        }
    }

    fn caused(exit: Exit, error: &(dyn Error + 'static)) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(next) = cause {
            let text = next.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            cause = next.source();
        }
        Self::new(exit, message)
    }
}

impl std::fmt::Display for CliError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for CliError {}

impl Diagnostic for CliError {
    fn help<'a>(&'a self) -> Option<Box<dyn std::fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn std::fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        self.place.as_ref().map(|place| &place.0 as &dyn miette::SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = self.place.as_ref()?.1;
        Some(Box::new(std::iter::once(LabeledSpan::new_with_span(Some("here".to_owned()), span))))
    }
}

impl From<SubmitError> for CliError {
    fn from(error: SubmitError) -> Self {
        let exit = match &error {
            SubmitError::NoFleet(_) => Exit::Usage,
            SubmitError::Parcel(_) => Exit::NotFound,
            SubmitError::Conflict { .. } => Exit::Usage,
            SubmitError::Engine(_) => Exit::OutOfReach,
        };
        Self::caused(exit, &error)
    }
}

impl From<StageError> for CliError {
    fn from(error: StageError) -> Self {
        let exit = match error.kind() {
            ErrorKind::Usage => Exit::Usage,
            ErrorKind::NotFound => Exit::NotFound,
            ErrorKind::Storage => Exit::OutOfReach,
        };
        let help = match &error {
            StageError::Source(error) => help_for(error),
            StageError::Failed { .. } => Some("stage again: what was staged is kept, and only the rest is fetched"),
            StageError::NoRoom { .. } | StageError::Volume(VolumeError::Full { .. }) => {
                Some("free some space, or name another volume with --volume; nothing was published")
            }
            StageError::NoColumns { .. } => {
                Some("name columns that there are, or stage the dataset whole: choose no columns")
            }
            StageError::Volume(VolumeError::ReadOnly { .. }) => Some("name another volume with --volume"),
            StageError::Volume(VolumeError::Io { source, .. }) if Errno::from_io_error(source) == Some(Errno::IO) => {
                Some("the volume's device or server failed: its system's log says more; nothing was published")
            }
            _ => None,
        };
        Self { help: help.map(str::to_owned), ..Self::caused(exit, &error) }
    }
}

fn help_for(error: &SourceError) -> Option<&'static str> {
    match error {
        SourceError::NoCredentials { .. } => {
            Some("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; a public bucket needs --anonymous")
        }
        SourceError::Denied { .. } => Some("check the credentials, and that they may list and read the bucket"),
        SourceError::Unreachable { .. } => Some("check the endpoint and the network"),
        SourceError::Empty { .. } => Some("check the prefix, and the include and exclude globs"),
        SourceError::Missing { .. } => {
            Some("keys are below the source's prefix, and end where the line ends: a carriage return is part of a key")
        }
        SourceError::Changed { .. } => Some("stage again when the source is at rest; nothing was published"),
        SourceError::Corrupt { .. } => Some("nothing was published; compare the object with where it was made"),
        SourceError::NoFooter { .. } => Some("exclude it, or stage the dataset whole: choose no columns"),
        SourceError::Elsewhere { .. } => Some("name its region with --region or AWS_REGION"),
        _ => None,
    }
}

impl From<SourceError> for CliError {
    fn from(error: SourceError) -> Self {
        StageError::from(error).into()
    }
}

impl From<SnapshotError> for CliError {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::NoDataset { .. } | SnapshotError::NoSnapshot { .. } => {
                Self::caused(Exit::NotFound, &error).help("`forebay dataset list` shows what there is")
            }
            SnapshotError::NoneBefore { .. } => Self::caused(Exit::NotFound, &error)
                .help("`forebay dataset show` lists them: name the one to compare from, and the one to compare to"),
            SnapshotError::BadName { .. } | SnapshotError::BadLabel { .. } | SnapshotError::Ambiguous { .. } => {
                Self::caused(Exit::Usage, &error)
            }
            error => Self::caused(Exit::OutOfReach, &error),
        }
    }
}

impl From<NativeError> for CliError {
    fn from(error: NativeError) -> Self {
        let help = match &error {
            NativeError::Absent { has, .. } if has.is_empty() => {
                Some("run the job by the program that it is compiled into: `PROGRAM run JOB`")
            }
            NativeError::Absent { .. } => {
                Some("correct the name, or run the job by the program that it is compiled into: `PROGRAM run JOB`")
            }
            NativeError::NotMade(_) => Some("correct [params] in the job file"),
            NativeError::BadName { .. } | NativeError::Twice { .. } | NativeError::BadColumns { .. } => None,
        };
        Self { help: help.map(str::to_owned), ..Self::caused(Exit::Usage, &error) }
    }
}

impl From<Unfit> for CliError {
    fn from(error: Unfit) -> Self {
        Self::new(Exit::CannotRun, error.to_string()).help("ask for less in [workers], or run it where there is more")
    }
}

impl From<VolumeError> for CliError {
    fn from(error: VolumeError) -> Self {
        match error {
            VolumeError::Missing { .. } => Self::caused(Exit::NotFound, &error)
                .help("stage something first, or name the volume with --volume or FOREBAY_VOLUME"),
            error => StageError::from(error).into(),
        }
    }
}

impl From<RoomError> for CliError {
    fn from(error: RoomError) -> Self {
        let help = match &error {
            RoomError::Snapshot(_) | RoomError::Volume(_) => None,
            error => Some(error.remedy()),
        };
        Self { help, ..Self::caused(Exit::OutOfReach, &error) }
    }
}

impl From<CoordinateError> for CliError {
    fn from(error: CoordinateError) -> Self {
        Self::coordinating_plainly(error)
    }
}

impl From<RunDirError> for CliError {
    fn from(error: RunDirError) -> Self {
        match error {
            RunDirError::NotFound { .. } => {
                Self::caused(Exit::NotFound, &error).help("`forebay runs list` shows what there is")
            }
            RunDirError::Conflict { .. } => {
                Self::caused(Exit::Usage, &error).help("give the changed job another --id, or none")
            }
            RunDirError::Ship { .. } | RunDirError::BadName { .. } => {
                Self::caused(Exit::Usage, &error).help("correct `files` in the job file")
            }
            RunDirError::Volume(error) => error.into(),
            error => Self::caused(Exit::OutOfReach, &error),
        }
    }
}

impl From<WorkerError> for CliError {
    fn from(error: WorkerError) -> Self {
        match error {
            WorkerError::Volume(error) => error.into(),
            WorkerError::Link(error) => {
                let help = match &error {
                    LinkError::NoRun { .. } => Some(
                        "`forebay run` says on which volume the run is, and `forebay volume show` which one is here: \
                         mount that one, or name it with --volume",
                    ),
                    LinkError::None { .. } => Some("`forebay resume` coordinates the run; start workers after it"),
                    LinkError::Unreachable(_) => Some(
                        "let the coordinator listen where this host reaches it (--listen), say where that is \
                         (--advertise), or write link = \"files\" below [workers] in the job",
                    ),
                    _ => None,
                };
                Self { help: help.map(str::to_owned), ..Self::caused(Exit::OutOfReach, &error) }
            }
            error => Self::caused(Exit::OutOfReach, &error),
        }
    }
}

impl From<LogError> for CliError {
    fn from(error: LogError) -> Self {
        Self::caused(Exit::OutOfReach, &error)
    }
}
