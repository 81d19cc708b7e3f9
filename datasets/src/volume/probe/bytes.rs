//! What a mount does with bytes: shared blocks, reserved blocks, and writes past the page cache.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
};

use rustix::fs::{AtFlags, CWD, FallocateFlags, OFlags, StatxFlags, fallocate, ioctl_ficlone, statx};

use super::{Mount, Place, VolumeError};

/// Units of direct writes that file systems have, the smallest first.
const UNITS: [usize; 2] = [512, 4096];
const RESERVED: u64 = 64 << 10;

pub(super) fn find(place: &Place, mount: &mut Mount) -> Result<(), VolumeError> {
    mount.reflink = place.works("clone", clones(place))?;
    mount.fallocate = place.works("reserve", reserves(place))?;
    mount.direct_io = direct(place)?;
    Ok(())
}

fn clones(place: &Place) -> io::Result<bool> {
    let one = place.file("blocks", &[7; 4096])?;
    let two = place.file("clone", b"")?;
    ioctl_ficlone(&two, &one)?;
    // A second file, and not a second name.
    one.write_all_at(&[8], 0)?;
    let mut seen = [0; 4096];
    two.read_exact_at(&mut seen, 0)?;
    Ok(seen == [7; 4096])
}

fn reserves(place: &Place) -> io::Result<bool> {
    let file = place.file("reserved", b"")?;
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, RESERVED)?;
    let meta = file.metadata()?;
    Ok(meta.blocks() * 512 >= RESERVED && meta.len() == 0)
}

/// The smallest unit in which direct writes arrive and are read again.
fn direct(place: &Place) -> Result<Option<u32>, VolumeError> {
    for unit in UNITS {
        let name = format!("direct-{unit}");
        let written = match write_directly(place, &name, unit) {
            // Some refuse with the error of a broken disk.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => Ok(false),
            written => written,
        };
        if place.works("write", written)? {
            // Where smaller writes succeed through the page cache, the system tells from where on they do not.
            let stated = statx(CWD, place.path(&name), AtFlags::empty(), StatxFlags::DIOALIGN);
            let stated = stated.ok().filter(|found| found.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
            let stated = stated.map_or(0, |found| found.stx_dio_mem_align.max(found.stx_dio_offset_align));
            return Ok(Some(stated.max(unit as u32)));
        }
    }
    Ok(None)
}

fn write_directly(place: &Place, name: &str, unit: usize) -> io::Result<bool> {
    let direct = OFlags::DIRECT.bits() as i32;
    let path = place.path(name);
    let file = File::options().read(true).write(true).create_new(true).custom_flags(direct).open(&path)?;
    // Aligned to the unit, and to nothing more.
    let mut memory = vec![0; 4 * unit];
    let start = memory.as_ptr().align_offset(2 * unit) + unit;
    let buffer = &mut memory[start..start + unit];
    buffer.fill(0xA5);
    file.write_all_at(buffer, unit as u64)?;
    buffer.fill(0);
    file.read_exact_at(buffer, unit as u64)?;
    let direct = buffer.iter().all(|byte| *byte == 0xA5);
    let mut seen = vec![0; 2 * unit];
    File::open(&path)?.read_exact_at(&mut seen, 0)?;
    Ok(direct && seen[..unit].iter().all(|byte| *byte == 0) && seen[unit..].iter().all(|byte| *byte == 0xA5))
}
