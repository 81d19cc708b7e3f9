//! Whether locks keep another process out: one that is made for it, and ends within the experiment.
//!
//! Nothing in forebay relies on locks. Where they are missing, or are one host's alone, its users' programs may want to
//! know.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::unix::{ffi::OsStringExt, process::CommandExt},
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags, fcntl_lock, flock, openat},
    io::Errno,
};

use super::{Place, VolumeError};

/// A lock manager that is out of reach can keep its callers waiting for ever.
const PATIENCE: Duration = Duration::from_secs(2);
/// The child's answer is an error number that no system has, and these bits.
const ANSWER: i32 = 1 << 20;
const FLOCK: i32 = 1;
const RECORD: i32 = 2;

/// Whether `flock`, and whether `fcntl` record locks, keep another process out.
pub(super) fn find(place: &Place) -> Result<(bool, bool), VolumeError> {
    let (sender, answer) = mpsc::channel();
    let paths = [place.path("flock"), place.path("record")];
    thread::spawn(move || {
        // Whoever asked may have lost patience.
        let _ = sender.send(try_both(paths.map(|path| path.into_os_string().into_vec())));
    });
    let bits = answer.recv_timeout(PATIENCE).unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)));
    let bits = match bits {
        Ok(bits) => bits,
        Err(error) => place.works("lock", Err(error)).map(|_| 0)?,
    };
    Ok((bits & FLOCK != 0, bits & RECORD != 0))
}

fn try_both([flocked, recorded]: [Vec<u8>; 2]) -> io::Result<i32> {
    let names = [CString::new(flocked)?, CString::new(recorded)?];
    // On NFS both kinds are byte ranges at the server, so that they take a file each.
    let create = |name: &CString| {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        io::Result::Ok(File::from(openat(CWD, name.as_c_str(), flags, Mode::from(0o600))?))
    };
    let (one, two) = (create(&names[0])?, create(&names[1])?);
    let mut held = 0;
    held |= if flock(&one, FlockOperation::NonBlockingLockExclusive).is_ok() { FLOCK } else { 0 };
    held |= if fcntl_lock(&two, FlockOperation::NonBlockingLockExclusive).is_ok() { RECORD } else { 0 };
    let child = move || {
        let open = |name: &CString| openat(CWD, name.as_c_str(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let (one, two) = (open(&names[0])?, open(&names[1])?);
        let is_refused = |tried: rustix::io::Result<()>| matches!(tried, Err(Errno::AGAIN | Errno::ACCESS));
        let mut bits = 0;
        bits |= if is_refused(flock(&one, FlockOperation::NonBlockingLockExclusive)) { FLOCK } else { 0 };
        bits |= if is_refused(fcntl_lock(&two, FlockOperation::NonBlockingLockExclusive)) { RECORD } else { 0 };
        // An error ends the child before it becomes the program, and is told to the parent.
        Err(io::Error::from_raw_os_error(ANSWER | bits))
    };
    let mut command = Command::new("/nothing/is/executed");
    // SAFETY: between fork and its end the child makes system calls only, on names that were allocated before; nothing
    // in it allocates or takes a lock of this process.
    unsafe { command.pre_exec(child) };
    let error = match command.spawn() {
        Ok(mut child) => return child.wait().and(Err(io::Error::other("an impossible program was executed"))),
        Err(error) => error,
    };
    match error.raw_os_error() {
        Some(code) if code & ANSWER != 0 => Ok(held & code),
        _ => Err(error),
    }
}
