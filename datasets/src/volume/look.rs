//! Looking for a name that another host may just have made.

use std::{fs, io, path::Path};

/// How many directories above a name may be new, too: `datasets/<name>/snapshots/<id>/`.
const ABOVE: usize = 4;

/// Opens what a path names, and looks again where it was not there.
///
/// An NFS client that has found a name missing goes on saying so for up to a minute, and asks the server once the
/// directory was opened (nfs(5), `lookupcache` and close-to-open consistency).
pub fn looking_again<T>(path: &Path, open: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
    match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let above: Vec<_> =
                path.ancestors().skip(1).take(ABOVE).filter(|dir| !dir.as_os_str().is_empty()).collect();
            // The highest first. One that is not there has nothing to tell.
            above.into_iter().rev().for_each(|dir| drop(fs::File::open(dir)));
            open(path)
        }
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_is_missing_is_looked_for_twice_and_what_fails_otherwise_once() {
        let dir = tempfile::tempdir().unwrap();
        let (path, times) = (dir.path().join("a/b"), Cell::new(0));
        let late = |path: &Path| {
            times.set(times.get() + 1);
            if times.get() == 2 {
                fs::create_dir_all(path.parent().unwrap()).and_then(|()| fs::write(path, "x")).unwrap();
            }
            fs::read_to_string(path)
        };
        assert_eq!(looking_again(&path, late).unwrap(), "x");
        let failing = |_: &Path| {
            times.set(times.get() + 1);
            Err::<(), _>(io::Error::from(io::ErrorKind::PermissionDenied))
        };
        assert!(looking_again(&path, failing).is_err());
        assert_eq!(times.get(), 3);
    }
}
