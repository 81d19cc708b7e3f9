//! How often each user came: a map and a reduce that are compiled into the workers.

use std::process::ExitCode;

use forebay::{Column, Emit, Job, Map, Record, Reduce, Result, Rows, Values};

/// From lines such as `1357027262 10.0.3.7 maria "GET /cart HTTP/1.1" 200 5120` to users and times.
struct Requests;

impl Map for Requests {
    fn map(&mut self, record: Record<'_>, out: &mut Emit<'_>) -> Result {
        let mut words = record.text()?.split(' ');
        let time: u64 = words.next().unwrap_or_default().parse()?;
        out.emit(words.nth(1).ok_or("there is no user")?, time);
        Ok(())
    }
}

/// A session ends where its user does nothing for longer than this many seconds.
struct Sessions {
    pause: u64,
}

impl Reduce for Sessions {
    fn reduce(&mut self, user: &[u8], times: &mut Values<'_>, out: &mut Rows<'_>) -> Result {
        let mut times: Vec<u64> = times.of().collect();
        times.sort_unstable();
        let pauses = times.windows(2).filter(|pair| pair[1] - pair[0] > self.pause).count();
        out.row(&[user.into(), (pauses + 1).into(), times.len().into()]);
        Ok(())
    }
}

fn main() -> ExitCode {
    let columns = [Column::text("user"), Column::uint("sessions"), Column::uint("requests")];
    forebay::main([Job::named("sessions")
        .map(|_| Ok(Requests))
        .reduce(columns, |params| Ok(Sessions { pause: params.get("pause")? }))])
}
