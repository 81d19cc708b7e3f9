//! What the output of a task hangs on, as a digest: two tasks of one identity make the same.
//!
//! That are the work (its kind, query or program, the files it ships, parameters, the format of the output, and the
//! version of all this) and the content of the task's input as the manifest tells it. No time of change is part of it,
//! nor where anything lies, nor which task of how many it is.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    path::{Path, PathBuf},
};

use forebay_datasets::{checksum::file_checksum, snapshot::Object, split::Piece};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    plan::Plan,
    spec::{JobSpec, Program, Work},
    task::OutputFile,
};

/// To be raised whenever a built-in kind of work makes something else of the same input.
const VERSION: u32 = 2;

/// The digest of all that a task's output hangs on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Identity(String);

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Identity {
    fn of(value: &Value) -> Self {
        let digest = Sha256::digest(value.to_string().as_bytes());
        // 128 bits: tasks are counted in millions.
        Self(digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect())
    }

    /// As text of letters and digits, which can name a file.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The identity of a job's work, without any input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkIdentity {
    /// The digest of all parts.
    pub whole: Identity,
    /// Of each part, by what it is called before people.
    pub parts: BTreeMap<String, Identity>,
}

impl WorkIdentity {
    /// The identity of a job's work, whose shipped files lie in a directory.
    ///
    /// Words of a program that name a file on this host stand for what that file holds.
    ///
    /// # Errors
    /// A file that is shipped, or named, cannot be read.
    pub fn of(job: &JobSpec, files_dir: &Path) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        let shipped = match &job.work {
            Work::Command(command) => Some(&command.files),
            Work::Mapreduce(mapreduce) => Some(&mapreduce.files),
            Work::Sql(_) => None,
        };
        for name in shipped.into_iter().flat_map(|files| files.keys()) {
            files.insert(name.clone(), content(&files_dir.join(name))?);
        }
        let mut named = BTreeMap::new();
        for word in job.work.programs().into_iter().flat_map(words) {
            if let Some(path) = file_of(word) {
                named.insert(word.to_owned(), content(&path)?);
            }
        }
        // Code of one's own is that of this program, which is what the fleet starts.
        let own = job.native().map(|_| std::env::current_exe().and_then(|program| content(&program))).transpose()?;
        let output = &job.output;
        let parts: BTreeMap<_, _> = [
            ("the version of forebay", json!(VERSION)),
            ("the work", work(&job.work)),
            ("the shipped files", json!(files)),
            ("the files that the program's words name", json!(named)),
            ("the program with the native map and reduce", json!(own)),
            ("the parameters", json!(job.params)),
            ("the format of the output", json!([output.format, output.partition_by, output.row_group_size])),
            ("on_bad_record", json!(job.dataset.on_bad_record)),
        ]
        .into_iter()
        .map(|(part, value)| (part.to_owned(), Identity::of(&value)))
        .collect();
        Ok(Self { whole: Identity::of(&json!(parts)), parts })
    }

    /// The identity of a task of the first phase of a plan; none if the snapshot lacks one of its pieces.
    ///
    /// What is known of a query's table is part of it: a column that only another file has is a column of the table.
    pub fn of_split(&self, plan: &Plan, index: u32, contents: &Contents<'_>) -> Option<Identity> {
        let split = plan.splits.get(index as usize)?;
        let pieces =
            split.pieces.iter().map(|piece| contents.of(piece).map(|content| json!([piece.key, content, piece.part])));
        Some(Identity::of(&json!([self.whole, plan.table, pieces.collect::<Option<Vec<_>>>()?])))
    }

    /// The identity of a task of a later phase, which reads one partition of what the phase before has made.
    pub fn of_partition(&self, phase: u32, partition: u32, files: &[OutputFile]) -> Identity {
        let files: Vec<_> = files.iter().map(|file| (file.size, file.checksum)).collect();
        Identity::of(&json!([self.whole, phase, partition, files]))
    }
}

/// What the objects of a snapshot hold, by their keys.
#[derive(Debug)]
pub struct Contents<'a>(HashMap<&'a str, &'a Object>);

impl<'a> Contents<'a> {
    /// Of these objects.
    pub fn of_objects(objects: &'a [Object]) -> Self {
        Self(objects.iter().map(|object| (object.key.as_str(), object)).collect())
    }

    /// What a piece's object holds, in a word.
    pub fn of(&self, piece: &Piece) -> Option<String> {
        let object = self.0.get(piece.key.as_str())?;
        let held = object.held.iter().flatten().map(|range| format!("+{}:{}", range.offset, range.length));
        Some(format!("{}-{}{}", object.size, object.checksum, held.collect::<String>()))
    }
}

/// What is done, without where anything lies.
fn work(work: &Work) -> Value {
    let mut value = json!(work);
    for kind in value.as_object_mut().into_iter().flat_map(|kinds| kinds.values_mut()) {
        kind.as_object_mut().map(|spec| spec.remove("files"));
    }
    value
}

fn content(path: &Path) -> io::Result<(u64, String)> {
    let checked = file_checksum(path).map(|(size, checksum)| (size, checksum.to_string()));
    checked.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn words(program: &Program) -> Vec<&str> {
    match program {
        Program::Argv(argv) => argv.iter().map(String::as_str).collect(),
        Program::Shell(text) => text
            .split(|c: char| c.is_whitespace() || "\"'`;|&()<>=".contains(c))
            .filter(|word| !word.is_empty())
            .collect(),
    }
}

/// The file that a word names: a path from the root, or a program that is looked for in `PATH`.
fn file_of(word: &str) -> Option<PathBuf> {
    let is_file = |path: &PathBuf| path.is_file();
    if word.starts_with('/') {
        return Some(PathBuf::from(word)).filter(is_file);
    }
    if word.contains('/') {
        // It is one of those that are shipped.
        return None;
    }
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths).map(|dir| dir.join(word)).find(is_file)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use forebay_datasets::{
        checksum::Crc64,
        snapshot::HeldRange,
        split::{Part, Split},
    };

    use super::*;
    use crate::spec::parse;

    const COMMAND: &str = "[command]\nargv = ['sh', 'a.sh']\nfiles = ['a.sh']\n";

    fn identity(dir: &Path, rest: &str, params: &[(&str, &str)]) -> WorkIdentity {
        let text = format!("name = 'n'\n[dataset]\nsource = 'file:///x'\n{rest}");
        let params: Vec<_> = params.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        WorkIdentity::of(&parse::job_file(&text, dir, &params).unwrap(), dir).unwrap()
    }

    #[test]
    fn work_is_what_it_does_and_not_how_often_or_where() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.sh"), "true").unwrap();
        let of = |rest: &str| identity(dir.path(), rest, &[]);
        let same = of(COMMAND);
        for other in
            ["[retry]\nattempts = 9", "[workers]\ncount = 7", "[output]\nto = 'file:///y'", "[split]\ncount = 2"]
        {
            assert_eq!(same, of(&format!("{COMMAND}{other}")), "{other}");
        }
        for other in ["env = { A = '1' }\n", "[params]\np = '1'\n"] {
            assert_ne!(same.whole, of(&format!("{COMMAND}{other}")).whole, "{other}");
        }
        let of = |value| identity(dir.path(), &format!("{COMMAND}[params]\np = '1'\n"), &[("p", value)]);
        assert_ne!(of("2"), of("3"));
        fs::write(dir.path().join("a.sh"), "exit").unwrap();
        let changed = identity(dir.path(), COMMAND, &[]);
        let differ = |part: &&String| same.parts[*part] != changed.parts[*part];
        assert_eq!(same.parts.keys().filter(differ).collect::<Vec<_>>(), ["the shipped files"]);
    }

    #[test]
    fn a_program_on_this_host_is_what_its_file_holds() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("tool");
        for work in
            [format!("argv = ['{}']", program.display()), format!("shell = 'x=\"{}\" | cat'", program.display())]
        {
            let of = |text: &str| {
                fs::write(&program, text).unwrap();
                identity(dir.path(), &format!("[command]\n{work}\n"), &[]).whole
            };
            assert_eq!(of("one"), of("one"));
            assert_ne!(of("one"), of("two"));
        }
        assert!(file_of("sh").is_some_and(|path| path.is_absolute()) && file_of("no such program").is_none());
    }

    #[test]
    fn input_is_keys_parts_and_contents() {
        let dir = tempfile::tempdir().unwrap();
        let work = identity(dir.path(), "[mapreduce]\nmap = 'word-count'\n", &[]);
        let object = |key: &str, checksum| Object {
            key: key.into(),
            path: key.into(),
            size: 9,
            etag: Some("changes with each upload".into()),
            version_id: None,
            checksum: Crc64(checksum),
            held: None,
        };
        let piece =
            |key: &str, part| Piece { key: key.into(), path: format!("p/{key}"), size: 9, partial: false, part };
        let of = |object: Object, part| {
            let splits = vec![Split { pieces: vec![piece("a", part)] }];
            let (snapshot, listing, data, partitions, table) = (None, None, String::new(), None, None);
            let plan = Plan { snapshot, listing, data, splits, partitions, table };
            work.of_split(&plan, 0, &Contents::of_objects(&[object]))
        };
        let same = of(object("a", 1), Part::Whole).unwrap();
        let uploaded_again = Object { etag: None, version_id: Some("2".into()), ..object("a", 1) };
        assert_eq!(of(uploaded_again, Part::Whole), Some(same.clone()));
        let in_part =
            Object { held: Some(vec![HeldRange { offset: 0, length: 4, checksum: Crc64(1) }]), ..object("a", 1) };
        for (object, part) in [
            (object("a", 2), Part::Whole),
            (object("a", 1), Part::Bytes { offset: 0, length: 9 }),
            (in_part, Part::Whole),
        ] {
            assert_ne!(of(object, part).unwrap(), same);
        }
        assert_eq!(of(object("b", 1), Part::Whole), None);
    }
}
