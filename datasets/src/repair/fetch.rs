//! The very bytes that were staged, from the source.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    path::Path,
};

use super::RepairError;
use crate::{
    checksum::{Crc64, Hasher},
    snapshot::{HeldRange, Object},
    source::{
        Listed, Reader, SourceError,
        retry::{self, Schedule},
    },
    volume::{NewFile, VolumeError},
};

/// How often bytes that are not the manifest's are fetched, as staging does: wrong now and then is the network's doing.
const TRIES: u32 = 6;
const BUFFER: usize = 1 << 20;

/// Fetches an object into a new file, if the source still has it: under the same ETag, or by its version id, with the
/// size and checksum of the manifest. The file is synced.
pub(super) fn fetch(
    reader: &mut Reader,
    object: &Object,
    draft: &Path,
    progress: &dyn Fn(u64),
) -> Result<(), RepairError> {
    let Object { key, size, etag, version_id, .. } = object;
    let wanted = |version_id| Listed { key: key.clone(), size: *size, etag: etag.clone(), version_id };
    // What stands under the key first, which needs no leave to read versions.
    let current = match etag {
        Some(_) => pour_all(reader, object, &wanted(None), draft, progress),
        None => Err(SourceError::Changed { key: key.clone() }.into()),
    };
    let fetched = match (current, version_id, etag) {
        (Err(RepairError::Source(SourceError::Changed { .. } | SourceError::Gone { .. })), Some(version), _) => {
            pour_all(reader, object, &wanted(Some(version.clone())), draft, progress)
        }
        // Only its size and its checksum tell the object.
        (_, None, None) => pour_all(reader, object, &wanted(None), draft, progress),
        (current, ..) => current,
    };
    match fetched {
        Err(RepairError::Source(SourceError::Changed { .. } | SourceError::Gone { .. })) => Err(RepairError::Replaced),
        fetched => fetched,
    }
}

fn pour_all(
    reader: &mut Reader,
    object: &Object,
    listed: &Listed,
    draft: &Path,
    progress: &dyn Fn(u64),
) -> Result<(), RepairError> {
    if let Some(held) = &object.held {
        return pour_held(reader, object, held, listed, draft, progress);
    }
    let mut tries = 0;
    loop {
        let mut file = NewFile::create(draft)?;
        pour(reader, listed, &mut file, progress)?;
        let (_, found) = file.written();
        tries += 1;
        match found == object.checksum {
            true => return Ok(file.finish_in_tree().map(drop)?),
            false if tries < TRIES => tracing::warn!(key = object.key, "arrived with other bytes; fetching it again"),
            false => return Err(RepairError::Differs { found, wanted: object.checksum }),
        }
    }
}

/// The ranges that the snapshot holds of the object, in a file of its size.
fn pour_held(
    reader: &mut Reader,
    object: &Object,
    held: &[HeldRange],
    listed: &Listed,
    draft: &Path,
    progress: &dyn Fn(u64),
) -> Result<(), RepairError> {
    let failed = |error| VolumeError::io("write", draft, error);
    // A try that came upon another version of the object has left its own.
    let _ = fs::remove_file(draft);
    let file = File::create_new(draft).map_err(failed)?;
    file.set_len(object.size).map_err(failed)?;
    for range in held {
        let mut tries = 0;
        loop {
            let found = pour_range(reader, range, listed, &file, draft)?;
            tries += 1;
            match found == range.checksum {
                true => break,
                false if tries < TRIES => tracing::warn!(key = object.key, "arrived with other bytes; fetching again"),
                false => return Err(RepairError::Differs { found, wanted: range.checksum }),
            }
        }
        progress(range.length);
    }
    Ok(file.sync_all().map_err(failed)?)
}

fn pour_range(
    reader: &mut Reader,
    range: &HeldRange,
    listed: &Listed,
    file: &File,
    draft: &Path,
) -> Result<Crc64, RepairError> {
    let mut buffer = vec![0; BUFFER];
    let mut unwritten = None;
    let found = retry::blocking(|| {
        reader.get(listed, Some(&(range.offset..range.end())))?;
        let (mut hasher, mut offset) = (Hasher::default(), range.offset);
        while offset < range.end() {
            let room = usize::try_from(range.end() - offset).unwrap_or(usize::MAX).min(buffer.len());
            let read = reader.read(&mut buffer[..room])?;
            if read == 0 {
                let (key, received) = (listed.key.clone(), offset - range.offset);
                return Err(SourceError::WrongLength { key, expected: range.length, received });
            }
            unwritten = file.write_all_at(&buffer[..read], offset).err().or(unwritten.take());
            hasher.update(&buffer[..read]);
            offset += read as u64;
        }
        Ok(hasher.finish())
    })?;
    match unwritten {
        None => Ok(found),
        Some(error) => Err(VolumeError::io("write", draft, error).into()),
    }
}

/// Writes the whole of the object, however often the transfer breaks off.
fn pour(reader: &mut Reader, listed: &Listed, file: &mut NewFile, progress: &dyn Fn(u64)) -> Result<(), RepairError> {
    let mut buffer = vec![0; BUFFER.min(usize::try_from(listed.size).unwrap_or(BUFFER)).max(1)];
    let mut schedule = Schedule::default();
    loop {
        let before = file.written().0;
        match pour_on(reader, listed, file, &mut buffer, progress) {
            Err(RepairError::Source(error)) => {
                if file.written().0 > before {
                    schedule = Schedule::default();
                }
                match schedule.next(&error) {
                    // The wait that the schedule, or the server, asks for.
                    Some(wait) => std::thread::sleep(wait),
                    None => return Err(error.into()),
                }
            }
            done => return done,
        }
    }
}

/// Goes on where the file ends.
fn pour_on(
    reader: &mut Reader,
    listed: &Listed,
    file: &mut NewFile,
    buffer: &mut [u8],
    progress: &dyn Fn(u64),
) -> Result<(), RepairError> {
    let mut done = file.written().0;
    if done == listed.size && done > 0 {
        return Ok(());
    }
    reader.get(listed, (done > 0).then_some(done..listed.size).as_ref())?;
    while done < listed.size {
        let room = usize::try_from(listed.size - done).unwrap_or(usize::MAX).min(buffer.len());
        let read = reader.read(&mut buffer[..room])?;
        if read == 0 {
            break;
        }
        file.write_all(&buffer[..read]).map_err(|error| VolumeError::io("write", file.target(), error))?;
        done += read as u64;
        progress(read as u64);
    }
    // An answer has to end where the object does.
    let more = if done == listed.size { reader.read(&mut [0])? as u64 } else { 0 };
    match done + more == listed.size {
        true => Ok(()),
        false => {
            let (key, expected) = (listed.key.clone(), listed.size);
            Err(SourceError::WrongLength { key, expected, received: done + more }.into())
        }
    }
}
