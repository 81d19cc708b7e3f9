//! Listing a bucket.

use std::borrow::Cow;

use aws_sdk_s3::types::EncodingType;
use percent_encoding::percent_decode_str;

use super::{Bucket, unquoted};
use crate::source::{Asked, Listed, Page, SourceError, retry};

impl Bucket {
    /// Gives `page` the objects below the prefix, a page at a time, in the order in which S3 lists them.
    pub(in crate::source) async fn list(&self, page: &mut Page<'_>) -> Result<Asked, SourceError> {
        let (mut token, mut asked) = (None, Asked::default());
        loop {
            let ask = async || {
                let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(&self.prefix);
                let request = request.set_request_payer(self.payer.clone()).set_continuation_token(token.clone());
                // XML has no way to write some characters that keys may have.
                let request = request.encoding_type(EncodingType::Url);
                let answer = request.send().await.map_err(|error| self.error(None, error))?;
                let told = answer.key_count().and_then(|count| usize::try_from(count).ok());
                match told {
                    // A page that is not whole is as good as none.
                    Some(told) if told != answer.contents().len() + answer.common_prefixes().len() => {
                        let why = format!("a page of the listing has {} of {told} keys", answer.contents().len());
                        Err(SourceError::Broken { key: self.bucket.clone(), why })
                    }
                    _ => Ok(answer),
                }
            };
            let answer = retry::transient(ask).await?;
            asked.lists += 1;
            let objects = answer.contents().iter().filter_map(|object| {
                let key = decoded(object.key()?, answer.encoding_type());
                // The prefix itself, as consoles make it to show a folder, is no object below the prefix.
                let key = key.strip_prefix(&self.prefix).filter(|key| !key.is_empty())?;
                Some(Listed {
                    key: key.to_owned(),
                    size: object.size().unwrap_or(0).try_into().unwrap_or(0),
                    etag: object.e_tag().map(unquoted),
                    version_id: None,
                })
            });
            if page(objects.collect()).is_break() {
                return Ok(asked);
            }
            token = match (answer.is_truncated(), answer.next_continuation_token()) {
                (Some(true), Some(next)) if token.as_deref() != Some(next) => Some(next.to_owned()),
                (Some(true), _) => {
                    let message = "a listing is said to go on, and not where".to_owned();
                    return Err(SourceError::S3 { key: self.bucket.clone(), message });
                }
                _ => return Ok(asked),
            };
        }
    }
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
