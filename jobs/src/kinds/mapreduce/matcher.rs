//! Lines that match a pattern.
//!
//! A pattern is meant for a line without its end. To ask it of each line costs more for short lines than to read them: so
//! the whole text is searched at once, with a pattern that cannot match a newline, and whose beginning and end of the text
//! are those of a line. Only where a line holds a `\r` may such a match be none of the line alone; there the pattern itself
//! is asked.

use forebay_datasets::read::lines;
use regex::bytes::Regex;
use regex_automata::meta;
use regex_syntax::{
    ParserBuilder,
    hir::{Class, ClassBytes, ClassBytesRange, ClassUnicode, ClassUnicodeRange, Hir, HirKind, Look, Repetition},
};

use crate::kinds::TaskError;

/// A pattern that is searched for line by line.
pub(super) struct Matcher {
    of_line: Regex,
    /// None where it cannot be made.
    of_text: Option<meta::Regex>,
}

impl Matcher {
    pub(super) fn new(pattern: &str) -> Result<Self, TaskError> {
        let of_line = Regex::new(pattern).map_err(|error| TaskError::BadInput(error.to_string()))?;
        let parsed = ParserBuilder::new().utf8(false).build().parse(pattern).ok();
        let config = meta::Config::new().utf8_empty(false);
        let build = |hir: Hir| meta::Regex::builder().configure(config).build_from_hir(&within_lines(&hir)).ok();
        Ok(Self { of_line, of_text: parsed.and_then(build) })
    }

    /// Calls `take` with each line that matches, and its offset. The last line may lack an end.
    pub(super) fn each_line(
        &self,
        text: &[u8],
        mut take: impl FnMut(usize, &[u8]) -> Result<(), TaskError>,
    ) -> Result<(), TaskError> {
        let Some(of_text) = &self.of_text else {
            return lines(text)
                .filter(|(_, line)| self.of_line.is_match(line))
                .try_for_each(|(at, line)| take(at, line));
        };
        let mut from = 0;
        while from < text.len() {
            let input = regex_automata::Input::new(text).span(from..text.len());
            let Some(found) = of_text.search_half(&input).map(|found| found.offset()) else { break };
            // A match has no newline in it: where it ends, its line goes on.
            let start = memchr::memrchr(b'\n', &text[from..found]).map_or(from, |newline| from + newline + 1);
            if start == text.len() {
                break;
            }
            let end = memchr::memchr(b'\n', &text[found..]).map_or(text.len(), |newline| found + newline);
            let line = text[start..end].strip_suffix(b"\r").unwrap_or(&text[start..end]);
            let has_return = memchr::memchr(b'\r', &text[start..end]).is_some();
            if !has_return || self.of_line.is_match(line) {
                take(start, line)?;
            }
            from = end + 1;
        }
        Ok(())
    }
}

/// What matches in a text where the pattern matches in one of its lines: without newlines, and the text's ends are lines'.
/// Where a line ends is before its `\r`, too.
fn within_lines(hir: &Hir) -> Hir {
    match hir.kind() {
        HirKind::Empty => Hir::empty(),
        HirKind::Literal(literal) if literal.0.contains(&b'\n') => Hir::fail(),
        HirKind::Literal(literal) => Hir::literal(literal.0.clone()),
        HirKind::Class(Class::Unicode(class)) => {
            let mut class = class.clone();
            class.difference(&ClassUnicode::new([ClassUnicodeRange::new('\n', '\n')]));
            Hir::class(Class::Unicode(class))
        }
        HirKind::Class(Class::Bytes(class)) => {
            let mut class = class.clone();
            class.difference(&ClassBytes::new([ClassBytesRange::new(b'\n', b'\n')]));
            Hir::class(Class::Bytes(class))
        }
        HirKind::Look(Look::Start) => Hir::look(Look::StartLF),
        HirKind::Look(Look::End | Look::EndLF) => Hir::look(Look::EndCRLF),
        HirKind::Look(look) => Hir::look(*look),
        HirKind::Repetition(repetition) => {
            Hir::repetition(Repetition { sub: Box::new(within_lines(&repetition.sub)), ..repetition.clone() })
        }
        // Nobody asks what was captured.
        HirKind::Capture(capture) => within_lines(&capture.sub),
        HirKind::Concat(subs) => Hir::concat(subs.iter().map(within_lines).collect()),
        HirKind::Alternation(subs) => Hir::alternation(subs.iter().map(within_lines).collect()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(matcher: &Matcher, text: &[u8]) -> Vec<(usize, Vec<u8>)> {
        let mut found = Vec::new();
        matcher
            .each_line(text, |at, line| {
                found.push((at, line.to_vec()));
                Ok(())
            })
            .unwrap();
        found
    }

    fn agrees(pattern: &str, text: &[u8]) -> Result<(), TestCaseError> {
        let matcher = Matcher::new(pattern).unwrap();
        prop_assert!(matcher.of_text.is_some());
        let one_by_one = Matcher { of_text: None, ..Matcher::new(pattern).unwrap() };
        prop_assert_eq!(found(&matcher, text), found(&one_by_one, text), "{} in {:?}", pattern, text);
        Ok(())
    }

    #[test]
    fn a_line_is_found_as_if_it_stood_alone() {
        for pattern in [
            "",
            "a",
            "a*",
            "^a",
            "a$",
            "^$",
            "^a$",
            "(?m)a$",
            "(?m)^b",
            "(?R)a$",
            "(?Rm)a$",
            "(?Rm)^b",
            r"\Aa",
            r"a\z",
            r"a\s",
            r"a\s*b",
            "a\nb",
            "\n",
            "a|\nb|b$",
            "[^b]",
            "(?s).",
            "(?s)a.b",
            r"\bb",
            r"a\B",
            r"(?-u)a\b",
            "(?-u)[^a]",
            r"\r",
            r"\r$",
            r"a\r",
            "(a|b){2,3}",
            "(?i)A",
            "é",
            r"\w+$",
            r"(?-u:\xff)",
        ] {
            for text in [
                &b""[..],
                b"\n",
                b"a",
                b"a\n",
                b"a\r\n",
                b"b\na\n",
                b"a\nb",
                b"a\r\nb\r\n\r\nab",
                b"\r\n",
                b"a\rb\n",
                b"\n\n\na\n\n",
                b"b\r\r\na\r",
                b"\xffa\n\xc3\xa9\xff\na\xff",
                b"aa\nbb\nab\nba",
            ] {
                agrees(pattern, text).unwrap();
            }
        }
    }

    proptest! {
        #[test]
        fn any_pattern_finds_the_lines_that_it_finds_one_by_one(
            pattern in r"((\^|\$|a|b|\.|\[\^a\]|\(a\|b\$\)|\\s|\\b|\\B|\(\?m\)|\\r|\\n|\\w)[*?+]?){0,5}", text in "[ab \n\r]{0,40}",
        ) {
            // `**` and the like are refused.
            prop_assume!(Regex::new(&pattern).is_ok());
            agrees(&pattern, text.as_bytes())?;
        }
    }
}
