//! Which names a mount keeps apart, and which it takes.

use std::{fs, io};

use super::{Mount, Place, VolumeError};

/// What FAT, SMB and their like do not take.
const ODD: &str = "odd\"*:<>?\\|\u{1}\u{7f}. ";

pub(super) fn find(place: &Place, mount: &mut Mount) -> Result<(), VolumeError> {
    // What cannot be created is not found by its other spelling.
    mount.folds_case = place.works("create", is_one(place, "Case", "cASE"))?;
    mount.folds_unicode = place.works("create", is_one(place, "form-\u{e9}", "form-e\u{301}"))?;
    mount.odd_names = place.works("create", takes(place, ODD))?;
    mount.longest_name = longest(place)?;
    Ok(())
}

fn is_one(place: &Place, name: &str, other: &str) -> io::Result<bool> {
    place.file(name, b"")?;
    place.path(other).try_exists()
}

/// Whether a name is there, as it was given, once it was created.
fn takes(place: &Place, name: &str) -> io::Result<bool> {
    place.file(name, b"")?;
    let mut names = fs::read_dir(&place.dir)?.flatten();
    let listed = names.any(|entry| entry.file_name().to_str() == Some(name));
    fs::remove_file(place.path(name))?;
    Ok(listed)
}

fn longest(place: &Place) -> Result<u32, VolumeError> {
    let stated = rustix::fs::statvfs(&place.dir).map_or(255, |stat| stat.f_namemax);
    let stated = usize::try_from(stated).unwrap_or(255).clamp(1, 255);
    let fits = |length: usize| place.works("create", takes(place, &"n".repeat(length)));
    if fits(stated)? {
        return Ok(stated as u32);
    }
    // One of these is too long, and one is not.
    let (mut short, mut long) = (1, stated);
    while long - short > 1 {
        let middle = short + (long - short) / 2;
        if fits(middle)? { short = middle } else { long = middle }
    }
    Ok(short as u32)
}
