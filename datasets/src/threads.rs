//! Many things that block, several at once.

use std::{collections::BTreeMap, sync::Mutex};

/// Does something with each item, on at most so many threads, each with a tool of its own; the results are in the order
/// of the items.
pub fn on_threads<Item: Sync, Tool, Done: Send>(
    most: usize,
    items: &[Item],
    tool: impl Fn() -> Tool + Sync,
    each: impl Fn(&mut Tool, &Item) -> Done + Sync,
) -> Vec<Done> {
    let (next, done) = (Mutex::new(items.iter().enumerate()), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..most.min(items.len()) {
            scope.spawn(|| {
                let mut tool = tool();
                loop {
                    let Some((at, item)) = next.lock().expect("no thread panics").next() else { return };
                    let result = each(&mut tool, item);
                    done.lock().expect("no thread panics").insert(at, result);
                }
            });
        }
    });
    done.into_inner().expect("no thread panics").into_values().collect()
}
