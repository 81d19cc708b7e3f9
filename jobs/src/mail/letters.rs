//! Letters as files: how they are written, found, taken and removed.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use forebay_datasets::volume::{self, VolumeError};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tonic::{Code, Status};

use super::{DOWN, LINK, UP, seal::Seal};
use crate::{link::LARGEST, wire::CancelRequest};

/// What is said together goes into one letter, about as long as this; one thing that is longer has one to itself.
const LETTER: usize = 1 << 20;
/// With less room than this nothing more is read: no letter of ours has more.
const LONGEST: u64 = (LARGEST + LETTER) as u64;

/// One thing that a letter says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line<T> {
    /// A message of the link.
    Said(T),
    /// The only line of its mailbox: the run is to end.
    Cancel(CancelRequest),
    /// Answers [`Self::Cancel`].
    Noted,
    /// The last line: there is nothing more for this mailbox, and why.
    Refused {
        /// A code of gRPC's.
        code: i32,
        /// The coordinator's words.
        message: String,
    },
    /// The last line.
    End,
}

impl<T> Line<T> {
    /// Why there is nothing more.
    pub fn refused(status: &Status) -> Self {
        Self::Refused { code: status.code() as i32, message: status.message().to_owned() }
    }
}

/// The status that a refusal tells.
pub(super) fn status(code: i32, message: String) -> Status {
    Status::new(Code::from(code), message)
}

/// The texts of the letters that say this, in order.
fn letters<T: Serialize>(lines: impl IntoIterator<Item = Line<T>>) -> Vec<Vec<u8>> {
    let mut letters: Vec<Vec<u8>> = Vec::new();
    for line in lines {
        let line = serde_json::to_vec(&line).expect("messages serialise");
        match letters.last_mut().filter(|letter| letter.len() + line.len() < LETTER) {
            Some(letter) => {
                letter.push(b'\n');
                letter.extend(line);
            }
            None => letters.push(line),
        }
    }
    letters
}

/// What a letter says.
///
/// # Errors
/// It is no letter of this version's.
pub fn read<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<Vec<Line<T>>> {
    serde_json::Deserializer::from_slice(text).into_iter().collect()
}

/// Writes the letters of one mailbox, in one direction.
#[derive(Debug)]
pub struct Outbox {
    mailbox: Mailbox,
    name: String,
    written: u64,
}

impl Outbox {
    /// That of a mailbox, whose place the letters of the one end are for.
    pub fn new(mailbox: Mailbox, name: &str) -> Self {
        Self { mailbox, name: name.to_owned(), written: 0 }
    }

    /// Puts lines into letters, and writes these. Blocks.
    ///
    /// # Errors
    /// The volume's; where the directory is gone, who was to read it is.
    pub fn say<T: Serialize>(&mut self, lines: impl IntoIterator<Item = Line<T>>) -> Result<(), VolumeError> {
        letters(lines).iter().try_for_each(|letter| self.write(letter))
    }

    fn write(&mut self, text: &[u8]) -> Result<(), VolumeError> {
        let name = format!("{}.{}", self.name, self.written + 1);
        volume::hand_over(&self.mailbox.dir.join(&name), &self.mailbox.seal.close(&self.mailbox.place(&name), text))?;
        self.written += 1;
        Ok(())
    }
}

/// A directory of letters.
#[derive(Clone, Debug)]
pub struct Mailbox {
    dir: PathBuf,
    /// Its place in [`LINK`], which the letters in it are made for.
    place: String,
    seal: Seal,
}

/// Letters that a listing showed, in the order in which they are to be taken: of a mailbox, by number.
pub type Listed = BTreeSet<(String, u64)>;

/// What was in a letter's place.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// A letter.
    Text(Vec<u8>),
    /// What nobody wrote who has the token.
    Strange,
}

impl Mailbox {
    /// What workers write to the coordinator of an epoch.
    pub fn up(epoch_dir: &Path, token: &str) -> Self {
        Self { dir: epoch_dir.join(LINK).join(UP), place: UP.to_owned(), seal: Seal::new(token) }
    }

    /// What the coordinator of an epoch writes to one mailbox.
    pub fn down(epoch_dir: &Path, token: &str, name: &str) -> Self {
        let place = format!("{DOWN}/{name}");
        Self { dir: epoch_dir.join(LINK).join(&place), place, seal: Seal::new(token) }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn place(&self, name: &str) -> String {
        format!("{}/{name}", self.place)
    }

    /// The letters that are there, and the names that are no letter's.
    ///
    /// # Errors
    /// The directory cannot be listed; not found is what an epoch is that is over.
    pub fn list(&self) -> io::Result<(Listed, Vec<String>)> {
        let (mut listed, mut strange) = (Listed::new(), Vec::new());
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            // Letters that are being written are hidden.
            if name.starts_with('.') {
                continue;
            }
            match name.split_once('.').map(|(mailbox, number)| (mailbox, number, number.parse::<u64>())) {
                Some((mailbox, text, Ok(number))) if number > 0 && text == number.to_string() => {
                    listed.insert((mailbox.to_owned(), number));
                }
                _ => strange.push(name),
            }
        }
        Ok((listed, strange))
    }

    /// Takes a letter out. Blocks.
    ///
    /// # Errors
    /// It cannot be read or removed: it is still there, or is to be looked for again.
    pub fn take(&self, mailbox: &str, number: u64) -> io::Result<Taken> {
        let name = format!("{mailbox}.{number}");
        let path = self.dir.join(&name);
        let mut file = fs::File::open(&path)?;
        let mut letter = Vec::new();
        let is_ours = file.metadata()?.is_file() && file.metadata()?.len() <= LONGEST;
        if is_ours {
            Read::by_ref(&mut file).take(LONGEST).read_to_end(&mut letter)?;
        }
        let text = self.seal.open(&self.place(&name), letter).filter(|_| is_ours);
        self.discard(&name)?;
        Ok(text.map_or(Taken::Strange, Taken::Text))
    }

    /// Removes what is no letter, or one that nobody reads.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn discard(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.dir.join(name)) {
            // A reply that was lost.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

/// How long a directory is left alone before it is listed again: no file server tells of a new letter.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Backoff {
    const SHORTEST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(1);

    /// Something came, or was said that will be answered.
    pub fn reset(&mut self) {
        self.0 = Self::SHORTEST;
    }

    /// The next pause, each longer than the one before.
    pub fn pause(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(Self::LONGEST);
        pause
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self(Self::SHORTEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> (tempfile::TempDir, Mailbox) {
        let dir = tempfile::tempdir().unwrap();
        let mailbox = Mailbox::up(dir.path(), "token");
        fs::create_dir_all(mailbox.dir()).unwrap();
        (dir, mailbox)
    }

    #[test]
    fn letters_are_found_in_order_and_taken_once() {
        let (_dir, mailbox) = fixture();
        let mut outbox = Outbox::new(mailbox.clone(), "a");
        for number in 1..=11 {
            outbox.write(format!("{number}").as_bytes()).unwrap();
        }
        let (listed, strange) = mailbox.list().unwrap();
        assert!(strange.is_empty() && listed.iter().map(|(_, number)| *number).eq(1..=11));
        assert_eq!(mailbox.take("a", 10).unwrap(), Taken::Text(b"10".to_vec()));
        assert_eq!(mailbox.take("a", 10).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(mailbox.list().unwrap().0.len(), 10);
    }

    #[test]
    fn garbage_is_no_letter_and_goes() {
        let (_dir, mailbox) = fixture();
        Outbox::new(mailbox.clone(), "a").write(b"text").unwrap();
        let written = fs::read(mailbox.dir().join("a.1")).unwrap();
        fs::write(mailbox.dir().join("b.1"), &written).unwrap();
        fs::write(mailbox.dir().join("a.2"), &written[..20]).unwrap();
        for name in ["a.01", "a.0", "a.x", "core", ".tmp-1"] {
            fs::write(mailbox.dir().join(name), "").unwrap();
        }
        // Longer than any letter; it takes no room, and is not read.
        fs::File::create(mailbox.dir().join("c.1")).unwrap().set_len(4 << 30).unwrap();
        let (listed, mut strange) = mailbox.list().unwrap();
        strange.sort();
        assert_eq!(strange, ["a.0", "a.01", "a.x", "core"]);
        let taken: Vec<_> = listed.iter().map(|(name, number)| mailbox.take(name, *number).unwrap()).collect();
        let strange = || Taken::Strange;
        assert_eq!(taken, [Taken::Text(b"text".to_vec()), strange(), strange(), strange()]);
        assert!(mailbox.list().unwrap().0.is_empty());
    }

    #[test]
    fn what_is_said_together_is_one_letter_unless_that_grew_too_long() {
        let line = |length: usize| Line::Said("x".repeat(length));
        let lines = vec![line(3), Line::Noted, line(LETTER), line(4), Line::End];
        let letters = letters(lines.clone());
        assert_eq!(letters.len(), 3);
        let read: Vec<Line<String>> = letters.iter().flat_map(|letter| read(letter).unwrap()).collect();
        assert_eq!(read, lines);
        assert!(super::read::<String>(b"{\"said\":\"x").is_err());
    }

    #[test]
    fn pauses_grow_to_a_second() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..7).map(|_| backoff.pause().as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.pause().as_millis(), 50);
    }
}
