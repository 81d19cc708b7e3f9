//! Writes text for `benches/crunch`: `text_data words|stations DIR BYTES FILES`.
//!
//! `words` are 400,000 different ones, the n-th of them n times rarer than the first (Zipf's law with exponent 1), in lines
//! of some 75 bytes. `stations` are lines of a name and a number, as the one billion row challenge has them, of 413 names.
//! The same arguments always give the same text.

use std::{
    env,
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

const VOCABULARY: usize = 400_000;
const STATIONS: usize = 413;
/// Ranks are drawn from a table in which each has places by its frequency.
const PLACES: usize = 1 << 22;

/// Appends a line without its end.
type Line = dyn FnMut(&mut Vec<u8>);

fn main() -> io::Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [kind, dir, bytes, files] = &*arguments else {
        return Err(io::Error::other("usage: text_data words|stations DIR BYTES FILES"));
    };
    let (Ok(bytes), Ok(files)) = (bytes.parse::<u64>(), files.parse::<u64>()) else {
        return Err(io::Error::other("BYTES and FILES are numbers"));
    };
    let mut rng = fastrand::Rng::with_seed(7);
    let mut line: Box<Line> = match &**kind {
        "words" => {
            let (words, ranks) = (vocabulary(&mut rng), ranks());
            Box::new(move |line| {
                while line.len() < 70 {
                    if !line.is_empty() {
                        line.push(b' ');
                    }
                    line.extend_from_slice(&words[ranks[rng.usize(..PLACES)] as usize]);
                }
            })
        }
        _ => {
            let mut names: Vec<_> = (1..STATIONS).map(|_| name(&mut rng)).collect();
            names.push(b"Quito".to_vec());
            Box::new(move |line| {
                line.extend_from_slice(&names[rng.usize(..STATIONS)]);
                let tenths = rng.i32(-999..=999);
                let sign = if tenths < 0 { "-" } else { "" };
                let _ = write!(line, ";{sign}{}.{}", tenths.abs() / 10, tenths.abs() % 10);
            })
        }
    };
    let mut text = Vec::new();
    for file in 0..files {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(Path::new(dir).join(format!("{file:03}.txt")))?);
        let mut left = bytes / files;
        while left > 0 {
            text.clear();
            line(&mut text);
            text.push(b'\n');
            out.write_all(&text)?;
            left = left.saturating_sub(text.len() as u64);
        }
        out.flush()?;
    }
    Ok(())
}

/// Words of letters, rare ones longer.
fn vocabulary(rng: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    let mut word = |rank: usize| {
        let shortest = 1 + rank.max(1).ilog(12) as usize;
        let length = rng.usize(shortest..2 * shortest + 3);
        (0..length).map(|_| rng.u8(b'a'..=b'z')).collect()
    };
    (0..VOCABULARY).map(&mut word).collect()
}

/// A rank a place.
fn ranks() -> Vec<u32> {
    let all: f64 = (1..=VOCABULARY).map(|rank| 1.0 / rank as f64).sum();
    let (mut rank, mut below) = (0, 1.0);
    let mut of_place = |place: usize| {
        while below < (place as f64 + 0.5) / PLACES as f64 * all {
            rank += 1;
            below += 1.0 / f64::from(rank + 1);
        }
        rank
    };
    (0..PLACES).map(&mut of_place).collect()
}

fn name(rng: &mut fastrand::Rng) -> Vec<u8> {
    let length = rng.usize(3..14);
    let mut name: Vec<_> = (0..length).map(|_| rng.u8(b'a'..=b'z')).collect();
    name[0].make_ascii_uppercase();
    name
}
