//! An HTTP response, and ways to read its body: in pieces, up to a limit.

use std::io::{self, BufRead, BufReader, Read};
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, DeserializeSeed};
use ureq::http::HeaderMap;

use crate::bounds::json::{LimitedJson, StringLimits};
use crate::bounds::lenient::Object;
use crate::settings::BaseUrl;
use crate::snapshot::Reason;
use crate::upstream::api::Recognizable;
use crate::upstream::api::list::{ListVisitor, MAX_KEPT};
use crate::upstream::http::request_error::{RequestError, RequestErrorKind};

const COMPRESSED: &str =
    "is compressed, though that was not asked for: switch compression off at the proxy";
/// The most bytes of a body that explains a status.
const MAX_EXPLANATION_BYTES: u64 = 64 << 10;

/// A response whose body has not been read.
pub struct HttpResponse {
    /// The HTTP status.
    pub status: u16,
    headers: HeaderMap,
    body: LimitedBody,
}

impl HttpResponse {
    /// Limits the body of `response` to `limit` bytes.
    ///
    /// # Errors
    /// Its Content-Length is larger.
    pub(super) fn new(
        response: ureq::http::Response<ureq::Body>,
        limit: u64,
    ) -> Result<HttpResponse, RequestError> {
        let (head, body) = response.into_parts();
        if body.content_length().is_some_and(|length| length > limit) {
            return Err(RequestError::too_large());
        }
        Ok(HttpResponse {
            status: head.status.as_u16(),
            headers: head.headers,
            body: LimitedBody {
                inner: body.into_reader(),
                left: limit,
                error: None,
            },
        })
    }

    /// The same response if its status is 200.
    ///
    /// # Errors
    /// It has another status.
    pub fn successful(self) -> Result<HttpResponse, RequestError> {
        match self.status {
            200 => Ok(self),
            401 | 403 => Err(RequestError::new(
                Reason::Unauthorized,
                "the server requires an API key",
            )),
            _ => Err(self.status_error()),
        }
    }

    /// A header's value, if it is printable.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Passes the body to `read`.
    ///
    /// # Errors
    /// [`Reason::Parse`] with the error of `read`, or the body could not be read.
    pub fn stream<T>(
        self,
        read: impl FnOnce(&mut dyn BufRead) -> Result<T, String>,
    ) -> Result<T, RequestError> {
        self.read(|body| read(body).map_err(|why| RequestError::new(Reason::Parse, why)))
    }

    /// Reads the whole body as text.
    ///
    /// # Errors
    /// [`Reason::Parse`] if it is not UTF-8, or it could not be read.
    pub fn text(self) -> Result<String, RequestError> {
        self.stream(|body| io::read_to_string(body).map_err(|_| "is not valid UTF-8".to_owned()))
    }

    /// Reads the body as JSON.
    ///
    /// # Errors
    /// [`Reason::Parse`], or the body could not be read.
    pub fn json<T: DeserializeOwned>(self) -> Result<T, RequestError> {
        self.json_with(PhantomData)
    }

    /// Reads the body as a JSON object.
    pub fn object<T: DeserializeOwned>(self) -> Result<T, RequestError> {
        self.json().map(|Object(object)| object)
    }

    /// Reads the body as a document of llama-server. For another object, the error is
    /// [`RequestErrorKind::Unrecognized`].
    pub fn recognized<T: Recognizable>(self) -> Result<T, RequestError> {
        let document: T = self.object()?;
        if document.is_recognizable() {
            Ok(document)
        } else {
            Err(RequestError::unrecognized(T::UNLIKE))
        }
    }

    /// Passes each object of a JSON array to `on_object`. Returns false for null. If it fails, some
    /// objects may already have been passed.
    pub fn for_each<T: DeserializeOwned>(
        self,
        on_object: impl FnMut(T),
    ) -> Result<bool, RequestError> {
        self.json_with(ListVisitor::new(None, on_object))
    }

    /// Passes each object of the list under `key` of a JSON object to `on_object`. Fails if there
    /// is no such list.
    pub fn for_each_in<T: DeserializeOwned>(
        self,
        key: &'static str,
        on_object: impl FnMut(T),
    ) -> Result<(), RequestError> {
        if self.json_with(ListVisitor::new(Some(key), on_object))? {
            return Ok(());
        }
        let why = format!("is not the expected document: it has no list `{key}`");
        Err(RequestError::new(Reason::Parse, why))
    }

    /// The first thousand objects of a JSON array; `None` if it is null.
    pub fn list<T: DeserializeOwned>(self) -> Result<Option<Vec<T>>, RequestError> {
        let mut list = Vec::new();
        let is_array = self.for_each(|object| {
            if list.len() < MAX_KEPT {
                list.push(object);
            }
        })?;
        Ok(is_array.then_some(list))
    }

    fn json_with<T, S>(self, seed: S) -> Result<T, RequestError>
    where
        S: for<'de> DeserializeSeed<'de, Value = T>,
    {
        self.read(|body| {
            let reader = LimitedJson::new(body, StringLimits::LABEL);
            let mut json = serde_json::Deserializer::from_reader(reader);
            let document = seed.deserialize(&mut json);
            let document = document.and_then(|document| json.end().map(|()| document));
            document.map_err(|error| (&error).into())
        })
    }

    fn read<T>(
        mut self,
        read: impl FnOnce(&mut dyn BufRead) -> Result<T, RequestError>,
    ) -> Result<T, RequestError> {
        let encoding = self.header("Content-Encoding").unwrap_or("identity");
        if encoding != "identity" {
            return Err(RequestError::new(Reason::Parse, COMPRESSED));
        }
        let result = read(&mut BufReader::with_capacity(16 << 10, &mut self.body));
        // A parser does not report why its reader failed.
        result.map_err(|error| self.body.error.take().unwrap_or(error))
    }

    /// The start of a body that explains the status; empty if it cannot be read.
    pub(super) fn explanation(self) -> String {
        let mut bytes = Vec::new();
        // Read to its end if that is near, so that the next request can use the connection.
        let _ = self
            .body
            .take(MAX_EXPLANATION_BYTES)
            .read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The error for this status, with the target of a redirect.
    pub fn status_error(&self) -> RequestError {
        let status = self.status;
        let mut detail = format!("HTTP status {status}");
        if let Some(target) = self.header("Location")
            && (300..400).contains(&status)
        {
            // Without possible secrets: user and password, query and fragment.
            let target = target.split(['?', '#']).next().unwrap_or_default();
            let target = BaseUrl::without_secrets(target);
            detail.push_str(&format!(
                ", a redirect to {target}: redirects are not followed, give that address as \
                 --base-url; if it is a login page, let the proxy pass on requests without a login"
            ));
        }
        let kind = match status {
            // llama-server itself sends 503 only while it loads. 520 to 530 are Cloudflare's.
            502..=504 | 520..=530 => RequestErrorKind::BadGateway,
            _ => RequestErrorKind::Other,
        };
        RequestError::new(Reason::Status, detail).of_kind(kind)
    }
}

/// A body that fails if it is longer than its limit, and stores the error.
struct LimitedBody {
    inner: ureq::BodyReader<'static>,
    left: u64,
    error: Option<RequestError>,
}

impl Read for LimitedBody {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer);
        let count = count.inspect_err(|error| {
            let error = RequestError::from(error);
            // It began as HTTP.
            self.error = Some(match error.kind {
                RequestErrorKind::NotHttp => error.of_kind(RequestErrorKind::Other),
                _ => error,
            });
        })?;
        match self.left.checked_sub(count as u64) {
            Some(left) => self.left = left,
            None => {
                self.error = Some(RequestError::too_large());
                return Err(io::Error::other("too large"));
            }
        }
        Ok(count)
    }
}
