//! What somebody writes who needs the figure once: mapped files, a thread a core, and no framework. `benches/crunch`
//! compares with it.
//!
//! `by_hand words OUT FILE…`, `by_hand lines OUT FILE…`, `by_hand grep NEEDLE OUT FILE…`, `by_hand stations OUT FILE…`

use std::{
    collections::HashMap,
    env,
    fs::File,
    io::{self, BufWriter, Write},
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use memmap2::Mmap;

/// Threads take so much at a time.
const PART: usize = 4 << 20;

type Counts<'a> = HashMap<&'a [u8], u64, foldhash::fast::FixedState>;

fn main() -> io::Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match &*arguments {
        ["words", out, files @ ..] => words(out, files),
        ["lines", out, files @ ..] => lines(out, files),
        ["grep", needle, out, files @ ..] => grep(needle.as_bytes(), out, files),
        ["stations", out, files @ ..] => stations(out, files),
        _ => Err(io::Error::other("usage: by_hand words|lines|grep|stations [NEEDLE] OUT FILE…")),
    }
}

fn map(files: &[&str]) -> io::Result<Vec<Mmap>> {
    // SAFETY: nobody changes the files while they are counted.
    files.iter().map(|file| unsafe { Mmap::map(&File::open(file)?) }).collect()
}

/// Parts of whole lines, taken by as many threads as there are cores; what each made of its own.
fn each_part<'a, T: Send>(
    maps: &'a [Mmap],
    begin: impl Fn() -> T + Sync,
    work: impl Fn(&mut T, usize, usize, &'a [u8]) + Sync,
) -> Vec<T> {
    let parts: Vec<(usize, Range<usize>)> =
        (0..).zip(maps).flat_map(|(at, map)| parts(map).map(move |part| (at, part))).collect();
    let next = AtomicUsize::new(0);
    let one = || {
        let mut made = begin();
        while let Some((at, part)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(&mut made, *at, part.start, &maps[*at][part.clone()]);
        }
        made
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
    })
}

fn parts(text: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let at = (start + PART).min(text.len());
        let end = memchr::memchr(b'\n', &text[at..]).map_or(text.len(), |newline| at + newline + 1);
        let part = start..end;
        start = end;
        (!part.is_empty()).then_some(part)
    })
}

fn words(out: &str, files: &[&str]) -> io::Result<()> {
    let maps = map(files)?;
    let is_space = {
        let mut is_space = [false; 256];
        b" \t\n\x0b\x0c\r".iter().for_each(|byte| is_space[usize::from(*byte)] = true);
        is_space
    };
    let mut counts = each_part(&maps, Counts::default, |counts, _, _, text| {
        for word in text.split(|byte| is_space[usize::from(*byte)]).filter(|word| !word.is_empty()) {
            *counts.entry(word).or_default() += 1;
        }
    });
    let mut all = counts.pop().unwrap_or_default();
    counts.into_iter().flatten().for_each(|(word, count)| *all.entry(word).or_default() += count);
    let mut sorted: Vec<_> = all.into_iter().collect();
    sorted.sort_unstable();
    let mut out = BufWriter::new(File::create(out)?);
    out.write_all(b"word,count\n")?;
    for (word, count) in sorted {
        out.write_all(word)?;
        writeln!(out, ",{count}")?;
    }
    out.flush()
}

fn lines(out: &str, files: &[&str]) -> io::Result<()> {
    let maps = map(files)?;
    let counts = each_part(
        &maps,
        || vec![0; maps.len()],
        |counts, at, _, text| {
            counts[at] += memchr::memchr_iter(b'\n', text).count();
        },
    );
    let mut out = BufWriter::new(File::create(out)?);
    out.write_all(b"key,lines\n")?;
    for (at, file) in files.iter().enumerate() {
        writeln!(out, "{file},{}", counts.iter().map(|counts| counts[at]).sum::<usize>())?;
    }
    out.flush()
}

fn grep(needle: &[u8], out: &str, files: &[&str]) -> io::Result<()> {
    let maps = map(files)?;
    let finder = memchr::memmem::Finder::new(needle);
    let found = each_part(&maps, Vec::new, |found, at, start, text| {
        let mut from = 0;
        while let Some(hit) = finder.find(&text[from..]) {
            let hit = from + hit;
            let begin = memchr::memrchr(b'\n', &text[..hit]).map_or(0, |newline| newline + 1);
            let end = memchr::memchr(b'\n', &text[hit..]).map_or(text.len(), |newline| hit + newline);
            found.push((at, start + begin, &text[begin..end]));
            from = (end + 1).min(text.len());
        }
    });
    let mut found: Vec<_> = found.into_iter().flatten().collect();
    found.sort_unstable();
    let mut out = BufWriter::new(File::create(out)?);
    out.write_all(b"key,offset,line\n")?;
    for (at, offset, line) in found {
        write!(out, "{},{offset},", files[at])?;
        out.write_all(line)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Least, greatest, sum and number of a station's temperatures in tenths of degrees: the one billion row challenge.
fn stations(out: &str, files: &[&str]) -> io::Result<()> {
    type Seen<'a> = HashMap<&'a [u8], (i64, i64, i64, u64), foldhash::fast::FixedState>;
    fn both<'a>(seen: &mut Seen<'a>, station: &'a [u8], (least, greatest, sum, count): (i64, i64, i64, u64)) {
        let all = seen.entry(station).or_insert((i64::MAX, i64::MIN, 0, 0));
        *all = (all.0.min(least), all.1.max(greatest), all.2 + sum, all.3 + count);
    }
    let maps = map(files)?;
    let mut seen = each_part(&maps, Seen::default, |seen, _, _, text| {
        let mut from = 0;
        while let Some(end) = memchr::memchr(b'\n', &text[from..]).map(|newline| from + newline) {
            let semicolon = (from..end).rev().find(|at| text[*at] == b';').unwrap_or(from);
            let (mut tenths, mut sign) = (0, 1);
            for byte in &text[semicolon + 1..end] {
                match byte {
                    b'-' => sign = -1,
                    b'.' => {}
                    digit => tenths = 10 * tenths + i64::from(digit - b'0'),
                }
            }
            both(seen, &text[from..semicolon], (sign * tenths, sign * tenths, sign * tenths, 1));
            from = end + 1;
        }
    });
    let mut all = seen.pop().unwrap_or_default();
    seen.into_iter().flatten().for_each(|(station, some)| both(&mut all, station, some));
    let mut sorted: Vec<_> = all.into_iter().collect();
    sorted.sort_unstable();
    let mut out = BufWriter::new(File::create(out)?);
    out.write_all(b"station,min,mean,max\n")?;
    for (station, (least, greatest, sum, count)) in sorted {
        out.write_all(station)?;
        let degrees = |tenths: i64| tenths as f64 / 10.0;
        writeln!(out, ",{},{},{}", degrees(least), sum as f64 / count as f64 / 10.0, degrees(greatest))?;
    }
    out.flush()
}
