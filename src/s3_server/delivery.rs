//! How a body reaches the client: at once, slowly, in part, or with a connection that breaks.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::stream;
use s3s::dto::StreamingBlob;

use super::{
    faults::{Fault, Faults},
    watch::{Asked, Gate},
};

/// Bodies that are slowed down go out in pieces of this size.
const PIECE: usize = 64 << 10;

/// Whether a connection is to be reset when it ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Line(Arc<AtomicBool>);

impl Line {
    fn reset(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(super) fn is_to_be_reset(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Bytes(Bytes),
    Wait(Duration),
    Reset,
    Close,
}

fn steps(body: Bytes, faults: &Faults, fault: Option<Fault>) -> VecDeque<Step> {
    let (whole, half) = (body.clone(), body.slice(..body.len() / 2));
    // What was sent before is to arrive before the connection ends.
    let settle = Step::Wait(Duration::from_millis(3));
    let ending = match fault {
        Some(Fault::Reset) => vec![Step::Bytes(half), settle, Step::Reset],
        Some(Fault::Cut) => vec![Step::Bytes(half), settle, Step::Close],
        Some(Fault::Stop) => vec![Step::Bytes(half), Step::Wait(faults.chance.silence), Step::Close],
        Some(Fault::Trickle) => {
            let pieces = whole.chunks(whole.len().div_ceil(10).max(1)).map(|piece| whole.slice_ref(piece));
            pieces.flat_map(|piece| [Step::Bytes(piece), Step::Wait(Duration::from_millis(20))]).collect()
        }
        _ => vec![Step::Bytes(whole)],
    };
    let Some(pace) = faults.pace else { return ending.into() };
    let paced = ending.into_iter().flat_map(|step| match step {
        Step::Bytes(bytes) => {
            let pieces = bytes.chunks(PIECE).map(|piece| bytes.slice_ref(piece));
            let time = |piece: &Bytes| Duration::from_secs_f64(piece.len() as f64 / pace.max(1) as f64);
            pieces.flat_map(|piece| [Step::Wait(time(&piece)), Step::Bytes(piece)]).collect()
        }
        other => vec![other],
    });
    paced.collect()
}

/// The body of an answer; `asked` lives as long as it is under way.
pub(super) fn body(
    bytes: Bytes,
    faults: &Faults,
    fault: Option<Fault>,
    line: Line,
    gate: Gate,
    asked: Asked,
) -> StreamingBlob {
    let state = (steps(bytes, faults, fault), line, gate, asked);
    StreamingBlob::wrap(stream::unfold(Some(state), |state| async {
        let (mut steps, line, gate, mut asked) = state?;
        loop {
            gate.passed().await;
            match steps.pop_front() {
                None => {
                    asked.answered();
                    return None;
                }
                Some(Step::Bytes(bytes)) => {
                    asked.sent(bytes.len());
                    // Hyper asks no further once it has all that was announced.
                    if steps.is_empty() {
                        asked.answered();
                    }
                    return Some((Ok(bytes), Some((steps, line, gate, asked))));
                }
                Some(Step::Wait(time)) => tokio::time::sleep(time).await,
                Some(ending) => {
                    if ending == Step::Reset {
                        line.reset();
                    }
                    return Some((Err(io::Error::from(io::ErrorKind::ConnectionReset)), None));
                }
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(steps: &VecDeque<Step>) -> usize {
        steps.iter().map(|step| if let Step::Bytes(bytes) = step { bytes.len() } else { 0 }).sum()
    }

    #[test]
    fn every_way_sends_what_it_says() {
        let body = Bytes::from(vec![7; 200_000]);
        let mut faults = Faults::default();
        for pace in [None, Some(1 << 20)] {
            faults.pace = pace;
            let of = |fault| steps(body.clone(), &faults, fault);
            assert_eq!(sent(&of(None)), 200_000);
            assert_eq!(sent(&of(Some(Fault::Trickle))), 200_000);
            assert_eq!((sent(&of(Some(Fault::Reset))), of(Some(Fault::Reset)).back()), (100_000, Some(&Step::Reset)));
            assert_eq!((sent(&of(Some(Fault::Cut))), of(Some(Fault::Cut)).back()), (100_000, Some(&Step::Close)));
            assert_eq!(sent(&of(Some(Fault::Stop))), 100_000);
        }
        let waits = |step: &Step| if let Step::Wait(time) = step { *time } else { Duration::ZERO };
        let paced: Duration = steps(body, &faults, None).iter().map(waits).sum();
        assert!((paced.as_secs_f64() - 200_000.0 / f64::from(1 << 20)).abs() < 1e-6, "{paced:?}");
    }
}
