//! Listing a bucket, several ranges of it at once.
//!
//! S3 gives 1,000 keys a page, and a page only after the one before, so that one listing of a million keys is a thousand
//! answers one after the other. But a listing can begin after any key. A range that goes on after two pages is cut where
//! directories begin, as many times as there are requests to spare: one request with a delimiter tells where. Ranges do
//! not overlap, the pages arrive in any order, and a short listing takes as many requests as it has pages.
//!
//! Ranges end by comparing keys, which is right only where the server lists in the order of bytes. One whose pages show
//! another order is listed from the beginning, without cuts.

use std::{
    borrow::Cow,
    collections::{BTreeSet, VecDeque},
};

use aws_sdk_s3::{operation::list_objects_v2::ListObjectsV2Output, types::EncodingType};
use futures::{StreamExt, stream::FuturesUnordered};
use percent_encoding::percent_decode_str;

use super::{Bucket, unquoted};
use crate::source::{Asked, Listed, Page, SourceError, retry};

/// Requests at once: far below what S3 answers for one prefix, 5,500 a second.
const MOST: usize = 16;
/// A range of so many pages, and more to come, is worth the request that tells where to cut it.
const PAYS: u32 = 2;
/// Directories that are gone into to find where to cut.
const DEEPEST: u32 = 8;

/// What is listed page by page: the keys with the prefix that are greater than `after` and not greater than `until`.
struct Range {
    prefix: String,
    after: Option<String>,
    until: Option<String>,
    token: Option<String>,
    /// The greatest key so far.
    last: String,
    pages: u32,
    /// How many pages before it is cut.
    whole_for: u32,
    is_to_be_cut: bool,
}

/// What a request for a range has brought.
enum Step {
    Page(Box<ListObjectsV2Output>),
    /// Keys at which it can be cut, in order; and how many requests that took.
    Cuts(Vec<String>, u64),
    /// The server does not tell.
    Uncut,
}

/// How a listing ended.
enum End {
    /// All keys were given, or somebody had enough.
    Done(Asked),
    /// The server does not list in the order of bytes, and ranges were ended by it.
    Disorder,
}

impl Range {
    fn new(prefix: String, after: Option<String>, until: Option<String>) -> Self {
        let last = after.clone().unwrap_or_default();
        Self { prefix, after, until, token: None, last, pages: 0, whole_for: PAYS, is_to_be_cut: false }
    }

    /// Ends the range at the first of the cuts, and makes ranges of the rest.
    fn cut(&mut self, cuts: &[String], most: usize) -> Vec<Self> {
        let pieces = (cuts.len() + 1).min(most);
        let mut ends: Vec<_> =
            (1..pieces).map(|piece| cuts[piece * (cuts.len() + 1) / pieces - 1].clone()).map(Some).collect();
        ends.push(self.until.take());
        self.until.clone_from(&ends[0]);
        ends.windows(2).map(|pair| Self::new(self.prefix.clone(), pair[0].clone(), pair[1].clone())).collect()
    }
}

impl Bucket {
    /// Gives `page` the objects below each of the prefixes, none of which begins with another, a page at a time and in
    /// any order.
    ///
    /// # Errors
    /// [`SourceError::Empty`] if there is nothing below one of several prefixes.
    pub(in crate::source) async fn list(&self, prefixes: &[String], page: &mut Page<'_>) -> Result<Asked, SourceError> {
        match self.list_ranges(prefixes, true, page).await? {
            End::Done(asked) => Ok(asked),
            End::Disorder => {
                tracing::warn!(bucket = self.bucket, "is not listed in the order of its keys; listing it page by page");
                match self.list_ranges(prefixes, false, page).await? {
                    End::Done(asked) => Ok(asked),
                    End::Disorder => Err(self.broken("its order changes")),
                }
            }
        }
    }

    async fn list_ranges(
        &self,
        prefixes: &[String],
        mut may_cut: bool,
        page: &mut Page<'_>,
    ) -> Result<End, SourceError> {
        let whole = |prefix: &String| Range::new(self.full(prefix), None, None);
        let mut waiting: VecDeque<_> = prefixes.iter().map(whole).collect();
        let mut empty: BTreeSet<_> = waiting.iter().map(|range| range.prefix.clone()).collect();
        let (mut under_way, mut asked, mut was_cut) = (FuturesUnordered::new(), Asked::default(), false);
        loop {
            while under_way.len() < MOST
                && let Some(range) = waiting.pop_front()
            {
                under_way.push(self.step(range));
            }
            let Some(step) = under_way.next().await else { break };
            let (mut range, step) = step?;
            let spare = MOST.saturating_sub(under_way.len() + waiting.len());
            let answer = match step {
                Step::Page(answer) => answer,
                Step::Uncut => {
                    asked.lists += 1;
                    (may_cut, range.is_to_be_cut) = (false, false);
                    waiting.push_front(range);
                    continue;
                }
                Step::Cuts(cuts, requests) => {
                    asked.lists += requests;
                    range.is_to_be_cut = false;
                    range.whole_for = match cuts.is_empty() {
                        true => range.pages * 2,
                        false => range.pages + PAYS,
                    };
                    was_cut |= !cuts.is_empty();
                    let rest = range.cut(&cuts, spare.max(1));
                    waiting.push_front(range);
                    waiting.extend(rest);
                    continue;
                }
            };
            asked.lists += 1;
            let mut objects = self.objects(&answer, &range);
            let is_in_order = objects.is_sorted_by(|a, b| a.key <= b.key)
                && objects.last().is_none_or(|last| range.last <= self.full(&last.key));
            if !is_in_order {
                if was_cut {
                    return Ok(End::Disorder);
                }
                may_cut = false;
            }
            if let Some(last) = objects.last() {
                empty.remove(&range.prefix);
                range.last = self.full(&last.key);
            }
            let is_behind = range.until.as_ref().is_some_and(|until| range.last > *until);
            if let Some(until) = range.until.as_ref().filter(|_| is_behind) {
                objects.retain(|object| self.full(&object.key) <= *until);
            }
            if page(objects).is_break() {
                return Ok(End::Done(asked));
            }
            let next = self.next(&answer, range.token.as_deref())?;
            if next.is_none() || is_behind {
                continue;
            }
            range.token = next;
            range.pages += 1;
            range.is_to_be_cut = may_cut && spare > 1 && range.pages >= range.whole_for && !range.last.is_empty();
            waiting.push_front(range);
        }
        match empty.pop_first() {
            Some(prefix) if prefixes.len() > 1 => {
                Err(SourceError::Empty { url: format!("s3://{}/{prefix}", self.bucket) })
            }
            _ => Ok(End::Done(asked)),
        }
    }

    async fn step(&self, range: Range) -> Result<(Range, Step), SourceError> {
        let step = match range.is_to_be_cut {
            true => match self.cuts(&range).await {
                Ok(cuts) => cuts,
                // It only saves time. What else is wrong, the next page tells.
                Err(error) => {
                    tracing::debug!(%error, "listing page by page");
                    Step::Uncut
                }
            },
            false => {
                let after = range.after.as_deref().filter(|_| range.token.is_none());
                Step::Page(Box::new(self.ask_page(&range.prefix, after, range.token.as_deref(), false).await?))
            }
        };
        Ok((range, step))
    }

    /// Where directories begin in what is left of a range: those on the level on which it is now, else those on the level
    /// below it, and so on. They are told by one page; what lies behind it is cut later.
    async fn cuts(&self, range: &Range) -> Result<Step, SourceError> {
        let Range { prefix, last, until, .. } = range;
        let mut dir = match until {
            Some(until) => common_directory(last, until).max(prefix),
            None => prefix,
        };
        let mut requests = 0;
        while requests < u64::from(DEEPEST) {
            let answer = self.ask_page(dir, Some(last), None, true).await?;
            requests += 1;
            let names = answer.common_prefixes().iter().filter_map(|common| common.prefix());
            let names = names.map(|name| decoded(name, answer.encoding_type()).into_owned());
            let is_left = |name: &String| {
                name > last && !last.starts_with(name.as_str()) && until.as_ref().is_none_or(|until| name < until)
            };
            let cuts: BTreeSet<_> = names.filter(is_left).collect();
            match last.get(dir.len()..).and_then(|rest| rest.find('/')) {
                _ if !cuts.is_empty() => return Ok(Step::Cuts(cuts.into_iter().collect(), requests)),
                Some(slash) => dir = &last[..=dir.len() + slash],
                None => break,
            }
        }
        Ok(Step::Cuts(Vec::new(), requests))
    }

    /// One page, as often as it takes to have it whole.
    async fn ask_page(
        &self,
        prefix: &str,
        after: Option<&str>,
        token: Option<&str>,
        by_directory: bool,
    ) -> Result<ListObjectsV2Output, SourceError> {
        let ask = async || {
            let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix);
            let request = request.set_request_payer(self.payer.clone());
            let request = request.set_start_after(after.map(str::to_owned));
            let request = request.set_continuation_token(token.map(str::to_owned));
            let request = request.set_delimiter(by_directory.then(|| "/".to_owned()));
            // XML has no way to write some characters that keys may have.
            let request = request.encoding_type(EncodingType::Url);
            let answer = request.send().await.map_err(|error| self.error(None, error))?;
            let told = answer.key_count().and_then(|count| usize::try_from(count).ok());
            match told {
                // A page that is not whole is as good as none.
                Some(told) if told != answer.contents().len() + answer.common_prefixes().len() => {
                    Err(self.broken(&format!("a page of the listing has {} of {told} keys", answer.contents().len())))
                }
                _ => Ok(answer),
            }
        };
        retry::transient(ask).await
    }

    fn objects(&self, answer: &ListObjectsV2Output, range: &Range) -> Vec<Listed> {
        let objects = answer.contents().iter().filter_map(|object| {
            let key = decoded(object.key()?, answer.encoding_type());
            // The prefix itself, as consoles make it to show a folder, is no object below the prefix.
            key.strip_prefix(&range.prefix).filter(|key| !key.is_empty())?;
            Some(Listed {
                key: key.strip_prefix(&self.prefix)?.to_owned(),
                size: object.size().unwrap_or(0).try_into().unwrap_or(0),
                etag: object.e_tag().map(unquoted),
                version_id: None,
            })
        });
        objects.collect()
    }

    /// The token of the next page.
    fn next(&self, answer: &ListObjectsV2Output, token: Option<&str>) -> Result<Option<String>, SourceError> {
        match (answer.is_truncated(), answer.next_continuation_token()) {
            (Some(true), Some(next)) if token != Some(next) => Ok(Some(next.to_owned())),
            (Some(true), _) => {
                let message = "a listing is said to go on, and not where".to_owned();
                Err(SourceError::S3 { key: self.bucket.clone(), message })
            }
            _ => Ok(None),
        }
    }

    fn broken(&self, why: &str) -> SourceError {
        SourceError::Broken { key: self.bucket.clone(), why: why.to_owned() }
    }
}

/// The directory that both keys lie in, with its slash.
fn common_directory<'a>(one: &'a str, other: &str) -> &'a str {
    let common = one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    let end = one.as_bytes()[..common].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    &one[..end]
}

/// A key as a listing has it; servers were seen that do not encode though they are asked to.
fn decoded<'a>(key: &'a str, encoding: Option<&EncodingType>) -> Cow<'a, str> {
    match encoding {
        Some(EncodingType::Url) => {
            let spaced = key.replace('+', " ");
            Cow::Owned(percent_decode_str(&spaced).decode_utf8_lossy().into_owned())
        }
        _ => Cow::Borrowed(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_into_ranges_that_are_all_of_it() {
        let cuts: Vec<_> = ('a'..='j').map(|c| format!("p/{c}/")).collect();
        for (count, most) in [(10, 4), (10, 16), (3, 2), (1, 16), (5, 1), (0, 16)] {
            let mut range = Range::new("p/".to_owned(), Some("p/A".to_owned()), Some("p/z/".to_owned()));
            let rest = range.cut(&cuts[..count], most);
            let all: Vec<_> = std::iter::once(&range).chain(&rest).collect();
            assert_eq!(all.len(), (count + 1).min(most));
            assert!(all.windows(2).all(|pair| pair[0].until == pair[1].after && pair[0].until > pair[0].after));
            assert_eq!((all[0].after.as_deref(), all[all.len() - 1].until.as_deref()), (Some("p/A"), Some("p/z/")));
        }
    }

    #[test]
    fn the_common_directory_ends_with_a_slash() {
        assert_eq!(common_directory("p/04/x", "p/05/"), "p/");
        assert_eq!(common_directory("p/04/x", "p/04/y"), "p/04/");
        assert_eq!(common_directory("ä/b", "å/b"), "");
        assert_eq!(common_directory("a", "b"), "");
    }
}
