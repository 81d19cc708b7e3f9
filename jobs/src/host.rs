//! What this host, or the container around this process, has for workers.

use std::{fs, num::NonZero};

use crate::spec::WorkersSpec;

/// What there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Cores that this process may use, which a container's limits and `taskset` lower.
    pub cores: u32,
    /// Bytes of memory, as far as a container may use them; none where the system does not tell.
    pub memory: Option<u64>,
    /// GPUs, as `CUDA_VISIBLE_DEVICES` names them.
    pub gpus: Vec<String>,
}

/// Why not even one worker fits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a worker wants {wants}, and this host has {has}")]
pub struct Unfit {
    wants: String,
    has: String,
}

impl Host {
    /// This one.
    pub fn here() -> Self {
        let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
        let limits = limits.iter().filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
        let memory = total(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            cores: u32::try_from(cores).unwrap_or(u32::MAX),
            memory: memory.into_iter().chain(limits).min(),
            gpus: std::env::var("CUDA_VISIBLE_DEVICES").map_or_else(|_| devices(), |named| listed(&named)),
        }
    }

    /// How many workers fit at once.
    ///
    /// # Errors
    /// Not even one does.
    pub fn holds(&self, workers: &WorkersSpec) -> Result<u32, Unfit> {
        let gibibytes = |bytes: u64| format!("{:.1} GiB of memory", bytes as f64 / f64::from(1 << 30));
        let (wants_cpus, wants_gpus) = (u64::from(workers.cpus.unwrap_or(0)), u64::from(workers.gpus));
        let gpus = self.gpus.len() as u64;
        let named = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let kinds = [
            (wants_cpus, u64::from(self.cores), named(wants_cpus, "cpu"), named(self.cores.into(), "cpu")),
            (
                workers.memory.filter(|_| self.memory.is_some()).unwrap_or(0),
                self.memory.unwrap_or(0),
                gibibytes(workers.memory.unwrap_or(0)),
                gibibytes(self.memory.unwrap_or(0)),
            ),
            (wants_gpus, gpus, named(wants_gpus, "gpu"), named(gpus, "gpu")),
        ];
        let mut fit = u64::MAX;
        for (each, all, wants, has) in kinds {
            fit = fit.min(all.checked_div(each).unwrap_or(u64::MAX));
            if fit == 0 {
                return Err(Unfit { wants, has });
            }
        }
        Ok(u32::try_from(fit).unwrap_or(u32::MAX))
    }
}

/// All memory, by `/proc/meminfo`.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

fn listed(named: &str) -> Vec<String> {
    named.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// NVIDIA's, by their device files.
fn devices() -> Vec<String> {
    let names = fs::read_dir("/dev").into_iter().flatten().flatten();
    let number = |name: &str| name.strip_prefix("nvidia")?.parse::<u32>().ok();
    let mut numbers: Vec<_> = names.filter_map(|entry| number(entry.file_name().to_str()?)).collect();
    numbers.sort_unstable();
    numbers.iter().map(u32::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse;

    #[test]
    fn as_many_workers_fit_as_the_scarcest_allows_and_what_never_fits_is_named() {
        let host = Host { cores: 8, memory: Some(24 << 30), gpus: listed("0, GPU-7,,2") };
        assert_eq!(host.gpus, ["0", "GPU-7", "2"]);
        let holds = |workers: &str| {
            let text =
                format!("name = 'n'\n[dataset]\nsource = 'file:///x'\n[command]\nargv = ['a']\n[workers]\n{workers}");
            let job = parse::job_file(&text, std::path::Path::new("/"), &[]).unwrap();
            host.holds(&job.workers).map_err(|error| error.to_string())
        };
        assert_eq!(holds(""), Ok(u32::MAX));
        assert_eq!(holds("cpus = 3"), Ok(2));
        assert_eq!(holds("cpus = 1\nmemory = '5GiB'\ngpus = 1"), Ok(3));
        assert_eq!(
            holds("memory = '25GiB'").unwrap_err(),
            "a worker wants 25.0 GiB of memory, and this host has 24.0 GiB of memory"
        );
        assert_eq!(holds("gpus = 4").unwrap_err(), "a worker wants 4 gpus, and this host has 3 gpus");
        assert_eq!(holds("cpus = 9").unwrap_err(), "a worker wants 9 cpus, and this host has 8 cpus");
        assert_eq!(
            Host { memory: None, ..host.clone() }.holds(
                &parse::job_file(
                    "name = 'n'\n[dataset]\nsource = 'file:///x'\n[command]\nargv = ['a']\n[workers]\nmemory = '99TiB'",
                    std::path::Path::new("/"),
                    &[]
                )
                .unwrap()
                .workers
            ),
            Ok(u32::MAX)
        );
    }

    #[test]
    fn this_host_has_a_core_and_memory() {
        let host = Host::here();
        assert!(host.cores >= 1 && host.memory.is_some_and(|bytes| bytes > 1 << 20), "{host:?}");
        assert_eq!(total("MemTotal:       24576 kB\n"), Some(24 << 20));
    }
}
