//! A job as it travels to where its run is coordinated: the text of its file, what that came to, and the files that it
//! ships, as one line of text.
//!
//! Whoever opens it needs neither the job file's folder nor what the file says of it: the job is resolved where it was
//! read, and only where its files are is said anew.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Component, Path},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use serde::{Deserialize, Serialize};

use crate::{id::RunId, spec::JobSpec};

/// What is unpacked at most, in bytes: who packs it is not believed.
const LARGEST: u64 = 64 << 20;

/// A job that travels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parcel {
    version: u32,
    /// The run's id.
    pub run: RunId,
    /// The job file's text.
    pub text: String,
    job: JobSpec,
    files: Vec<Shipped>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Shipped {
    name: String,
    mode: u32,
    /// In base64.
    content: String,
}

/// Why a job cannot travel, or has not arrived.
#[derive(Debug, thiserror::Error)]
pub enum ParcelError {
    /// A file that it ships cannot be read.
    #[error("cannot read {path}, which the job ships")]
    File {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not whole, or never was one.
    #[error("what should be a job that was submitted is none, or not all of one")]
    Torn,
    /// Another forebay packed it.
    #[error(
        "the job was submitted by a forebay whose parcels have version {found}, and this one knows only {}",
        Parcel::VERSION
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// What it holds cannot be written down.
    #[error("cannot unpack a job that was submitted")]
    Unpack(#[from] io::Error),
}

impl Parcel {
    const VERSION: u32 = 1;

    /// The job with this text, and the files that it ships.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn pack(run: RunId, text: String, mut job: JobSpec) -> Result<Self, ParcelError> {
        let shipped = |(name, path): (&String, &String)| {
            let read =
                || Ok((fs::metadata(path)?.permissions().mode() & 0o777, BASE64_STANDARD.encode(fs::read(path)?)));
            let (mode, content) = read().map_err(|source| ParcelError::File { path: path.clone(), source })?;
            Ok(Shipped { name: name.clone(), mode, content })
        };
        let files = job.work.files().into_iter().flatten().map(shipped).collect::<Result<_, ParcelError>>()?;
        // Where they were is nobody's business there, and no difference.
        job.work.files_mut().into_iter().flatten().for_each(|(_, path)| path.clear());
        Ok(Self { version: Self::VERSION, run, text, job, files })
    }

    /// As text of letters, digits, `+`, `/` and `=`.
    pub fn seal(&self) -> String {
        let mut packed = ZlibEncoder::new(Vec::new(), Compression::best());
        let json = serde_json::to_vec(self).expect("its keys are texts");
        packed.write_all(&json).expect("a vector takes all");
        BASE64_STANDARD.encode(packed.finish().expect("a vector takes all"))
    }

    /// What a text holds.
    ///
    /// # Errors
    /// It is not whole, or of another version.
    pub fn open(text: &str) -> Result<Self, ParcelError> {
        #[derive(Deserialize)]
        struct Header {
            version: u32,
        }
        let packed = BASE64_STANDARD.decode(text.trim()).map_err(|_| ParcelError::Torn)?;
        let mut json = Vec::new();
        let mut unpacked = ZlibDecoder::new(&*packed).take(LARGEST);
        unpacked.read_to_end(&mut json).map_err(|_| ParcelError::Torn)?;
        let Header { version } = serde_json::from_slice(&json).map_err(|_| ParcelError::Torn)?;
        if version != Self::VERSION {
            return Err(ParcelError::Version { found: version });
        }
        serde_json::from_slice(&json).map_err(|_| ParcelError::Torn)
    }

    /// The job, with its files in a directory that is empty.
    ///
    /// # Errors
    /// They cannot be written there.
    pub fn unpack(mut self, dir: &Path) -> Result<JobSpec, ParcelError> {
        for file in &self.files {
            let is_plain = |name: &str| Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
            let content = BASE64_STANDARD.decode(&file.content).map_err(|_| ParcelError::Torn)?;
            if file.name.is_empty() || !is_plain(&file.name) {
                return Err(ParcelError::Torn);
            }
            let path = dir.join(&file.name);
            fs::create_dir_all(path.parent().unwrap_or(dir))?;
            let mut new = fs::OpenOptions::new();
            new.write(true).create_new(true).mode(file.mode & 0o777 | 0o600).open(path)?.write_all(&content)?;
        }
        for (name, path) in self.job.work.files_mut().into_iter().flatten() {
            *path = dir.join(name).display().to_string();
        }
        Ok(self.job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse::job_file;

    fn packed(dir: &Path) -> (JobSpec, Parcel) {
        fs::write(dir.join("tool.sh"), [0, 255, b'a'].repeat(50_000)).unwrap();
        fs::set_permissions(dir.join("tool.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        let text = "name = 'j'\n[dataset]\nsource = 's3://b'\n[command]\nargv = ['./tool.sh']\nfiles = ['tool.sh']\n";
        let job = job_file(text, dir, &[]).unwrap();
        (job.clone(), Parcel::pack("r".parse().unwrap(), text.to_owned(), job).unwrap())
    }

    #[test]
    fn a_job_arrives_with_its_files_wherever_it_is_opened() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (job, parcel) = packed(from.path());
        let text = parcel.seal();
        assert!(!text.contains(char::is_whitespace));
        drop(from);
        let arrived = Parcel::open(&format!("{text}\n")).unwrap();
        assert_eq!(arrived, parcel);
        let there = arrived.unpack(to.path()).unwrap();
        let path = to.path().join("tool.sh");
        assert_eq!(there.work.files().unwrap()["tool.sh"], path.display().to_string());
        assert!(there.is_same_as(&job) && there != job);
        assert_eq!(fs::read(&path).unwrap(), [0, 255, b'a'].repeat(50_000));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn what_is_torn_or_of_another_version_or_leads_elsewhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (job, parcel) = packed(dir.path());
        let text = parcel.seal();
        for torn in ["", "AAAA", &text[..text.len() / 2], &text[1..]] {
            assert!(matches!(Parcel::open(torn), Err(ParcelError::Torn)), "{torn}");
        }
        let later = Parcel { version: 2, ..parcel.clone() };
        assert!(matches!(Parcel::open(&later.seal()), Err(ParcelError::Version { found: 2 })));
        for name in ["../tool.sh", "/etc/tool.sh", ""] {
            let mut astray = parcel.clone();
            astray.files[0].name = name.to_owned();
            assert!(matches!(astray.unpack(&dir.path().join("to")), Err(ParcelError::Torn)), "{name}");
        }
        fs::remove_file(dir.path().join("tool.sh")).unwrap();
        let error = Parcel::pack("r".parse().unwrap(), parcel.text, job).unwrap_err();
        assert!(error.to_string().contains("/tool.sh"), "{error}");
    }
}
