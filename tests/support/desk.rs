//! A desk at which runs are submitted: the volume is not there, and a coordinator somewhere else does the work.

use std::{fs, path::PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::{Cluster, Terminal, eventually};

/// Of a run: as many files as tasks.
pub const TASKS: usize = 8;

pub struct Desk {
    pub cluster: Cluster,
    /// What coordinators and workers do not see.
    dir: TempDir,
}

impl Desk {
    pub async fn new() -> Self {
        Self { cluster: Cluster::start().await, dir: TempDir::new().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A host that has no volume at that path, nor anywhere.
    pub fn terminal(&self) -> Terminal {
        let state = self.path("state").display().to_string();
        self.cluster.terminal().env("XDG_STATE_HOME", &state).on_volume(&self.path("none"))
    }

    /// A job of two workers whose tasks wait until they are let go. They do so by a program that is shipped, and longer by
    /// so many lines than it has to be. `there` is where they have the cluster's volume.
    pub fn job(&self, source: &str, there: &str, lines: u128, rest: &str) -> String {
        let noise: String = (0..lines).map(|n| format!("# {:x}\n", fastrand::u128(n..))).collect();
        let tool = format!(
            "#!/bin/sh\n{noise}: > {there}/begun.$FOREBAY_TASK_INDEX\n\
             while [ ! -e {there}/go ]; do sleep 0.01; done\necho task $FOREBAY_TASK_INDEX\n\
             cat $(cat $FOREBAY_INPUTS) > $FOREBAY_OUTPUT_DIR/x\n"
        );
        fs::write(self.path("tool.sh"), tool).unwrap();
        let text = format!(
            "name = 'j'\nreuse = 'off'\n[dataset]\nsource = '{source}'\n[command]\nargv = ['sh', 'tool.sh']\n\
             files = ['tool.sh']\n[workers]\ncount = 2\n{rest}"
        );
        self.write(&text)
    }

    /// Writes the job.
    pub fn write(&self, text: &str) -> String {
        let path = self.path("job.toml");
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Puts so many bytes in the place of the program, which nothing makes shorter.
    pub fn noise(&self, bytes: usize) {
        let noise: Vec<u8> = (0..bytes).map(|_| fastrand::u8(..)).collect();
        fs::write(self.path("tool.sh"), noise).unwrap();
    }

    #[track_caller]
    pub fn is_begun(&self) {
        let is_begun = |n: &usize| self.cluster.volume().join(format!("begun.{n}")).exists();
        eventually("two tasks have begun", || (0..TASKS).filter(is_begun).count() == 2);
    }

    pub fn go(&self) {
        fs::write(self.cluster.volume().join("go"), "").unwrap();
    }

    /// The job is submitted as the run `r`. While that runs it is the same once more, and with something changed it is
    /// another one, which the desk does not note in its place.
    #[track_caller]
    pub fn submits(&self, terminal: &Terminal, job: &str) {
        let submit = |code| terminal.forebay(["submit", job, "--id", "r"]).code(code);
        let submitted = submit(0);
        assert_eq!(submitted.stdout, "r\n");
        assert!(submitted.stderr.contains("forebay wait r"), "{}", submitted.stderr);
        self.is_begun();
        let again = submit(0);
        assert!(again.stderr.contains("coordinates it already"), "{}", again.stderr);
        let text = fs::read_to_string(job).unwrap();
        self.write(&text.replace("count = 2", "count = 3"));
        let other = submit(2);
        assert!(other.stderr.contains("coordinates another job"), "{}", other.stderr);
        self.write(&text);
        let note = fs::read_to_string(self.path("state/forebay/submitted/r.json")).unwrap();
        assert!(note.contains("\"count\":2"), "who asks for the run asks for this one: {note}");
    }

    /// The run is looked at and waited for, its tasks are let go, and it ends. What was told of that.
    #[track_caller]
    pub fn follows(&self, terminal: &Terminal) -> Value {
        assert_eq!(terminal.forebay(["runs", "show", "r", "--json"]).last_json(0)["state"], "running");
        terminal.forebay(["wait", "r", "--timeout", "1s"]).code(124);
        let waiting = terminal.start(["wait", "r", "--json"]);
        self.go();
        let result = waiting.outcome().last_json(0);
        assert_eq!((&result["state"], &result["tasks"]["succeeded"]), (&"succeeded".into(), &TASKS.into()));
        let printed = terminal.forebay(["runs", "logs", "r"]).code(0).stdout;
        assert_eq!(printed.matches("task ").count(), TASKS, "{printed}");
        result
    }

    /// Who submits the run once it has ended finds this one.
    #[track_caller]
    pub fn finds(&self, terminal: &Terminal, job: &str, result: &Value) {
        let old = terminal.forebay(["submit", job, "--id", "r"]).code(0);
        assert!(!old.stderr.contains("already"), "{}", old.stderr);
        assert_eq!(terminal.forebay(["wait", "r", "--json"]).last_json(0)["seconds"], result["seconds"]);
    }

    /// Submits a job as the run `w`. What is said of it.
    #[track_caller]
    pub fn told(&self, terminal: &Terminal, text: &str, code: i32) -> String {
        let job = self.write(text);
        terminal.forebay(["submit", &job, "--id", "w"]).code(code).words()
    }
}
