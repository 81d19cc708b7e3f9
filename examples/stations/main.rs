//! The coldest, the mean and the warmest of each station's temperatures, of lines such as `Quito;14.8`: the one billion row
//! challenge. A map keeps what it has seen of each station, so that a line costs a look into a table and no pair.

use std::{collections::HashMap, process::ExitCode};

use foldhash::fast::RandomState;
use forebay::{Column, Emit, Job, Map, Record, Reduce, Result, Rows, Values};

/// Least and greatest, sum and number, in tenths of degrees.
type Seen = ((i64, i64), (i64, u64));

fn both(((a_least, a_greatest), (a_sum, a_count)): Seen, ((least, greatest), (sum, count)): Seen) -> Seen {
    ((a_least.min(least), a_greatest.max(greatest)), (a_sum + sum, a_count + count))
}

#[derive(Default)]
struct Measurements {
    of: HashMap<Vec<u8>, Seen, RandomState>,
}

impl Map for Measurements {
    fn map(&mut self, record: Record<'_>, _: &mut Emit<'_>) -> Result {
        // A temperature takes four to six of the last bytes.
        let semicolon = record.iter().rposition(|byte| *byte == b';').ok_or("there is no `;`")?;
        let (station, tenths) = (&record[..semicolon], tenths(&record[semicolon + 1..])?);
        let one = ((tenths, tenths), (tenths, 1));
        match self.of.get_mut(station) {
            Some(seen) => *seen = both(*seen, one),
            None => drop(self.of.insert(station.to_vec(), one)),
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Emit<'_>) -> Result {
        self.of.iter().for_each(|(station, seen)| out.emit(station, *seen));
        Ok(())
    }
}

/// The tenths of a number with one digit behind its point.
fn tenths(text: &[u8]) -> Result<i64> {
    let (digits, sign) = text.strip_prefix(b"-").map_or((text, 1), |digits| (digits, -1));
    let digit = |byte: u8| i64::from(byte.wrapping_sub(b'0'));
    let tenths = match *digits {
        [a, b'.', c] => 10 * digit(a) + digit(c),
        [a, b, b'.', c] => 100 * digit(a) + 10 * digit(b) + digit(c),
        _ => return Err("what follows the `;` is no temperature".into()),
    };
    let is_number = digits.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.');
    if is_number { Ok(sign * tenths) } else { Err("what follows the `;` is no temperature".into()) }
}

struct Summary;

impl Reduce for Summary {
    fn reduce(&mut self, station: &[u8], values: &mut Values<'_>, out: &mut Rows<'_>) -> Result {
        let all = values.of::<Seen>().reduce(both).ok_or("there is no value")?;
        let ((least, greatest), (sum, count)) = all;
        let degrees = |tenths: i64| tenths as f64 / 10.0;
        let mean = sum as f64 / count as f64 / 10.0;
        out.row(&[station.into(), degrees(least).into(), mean.into(), degrees(greatest).into()]);
        Ok(())
    }
}

fn main() -> ExitCode {
    let columns = [Column::text("station"), Column::float("min"), Column::float("mean"), Column::float("max")];
    forebay::main([Job::named("stations").map(|_| Ok(Measurements::default())).reduce(columns, |_| Ok(Summary))])
}
