//! One request and its answer, redirects included.
//!
//! Redirects are followed here and not by the HTTP client: credentials must stay with the registry
//! (storage behind it answers 400 when it sees them), TLS must not be left on the way, and a body
//! that streams cannot be sent twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use reqwest::header::{
    AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
    WARNING,
};
use reqwest::{Certificate, Method, StatusCode};
use url::Url;

use crate::certificates::{read_authorities, read_identity};
use crate::endpoint::{Endpoint, destination, host_and_port, is_loopback};
use crate::error::{
    Answer, Author, Cause, ConnectionFailure, Problem, RegistryError, RequestLine, Step, printable,
    read_error_body,
};
use crate::hosts::{Host, HostTable, Trust};
use crate::retry::Tally;
use crate::secret::KnownSecrets;
use crate::settings::{ClientSettings, SettingsError, Timeouts};

/// Real chains have one or two; ten is what browsers and curl allow at least.
const MAX_REDIRECTS: usize = 10;

/// How much of an error's body is read: what registries write fits many times over.
const MAX_ERROR_BODY: usize = 64 * 1024;

/// How much of a registry's warning is shown (distribution-spec, "Warnings": 4,096 bytes at most).
const LONGEST_WARNING: usize = 4096;

/// How many warnings are shown in a run; a registry must not be able to fill the screen.
const MOST_WARNINGS: usize = 16;

/// The HTTP clients, one for each way to connect. They are made when they are first needed: loading
/// the system's certificates takes longer than a whole push that finds nothing to do on a registry of
/// this machine.
#[derive(Debug)]
pub(crate) struct Transport {
    authorities: Vec<Certificate>,
    user_agent: HeaderValue,
    hosts: HostTable,
    clients: Mutex<BTreeMap<Way, reqwest::Client>>,
    /// What registries have warned of, by host.
    warnings: Mutex<BTreeSet<(String, String)>>,
}

/// What is settled when a connection is made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    /// To this machine, where no proxy could reach it.
    direct: bool,
    trust: Trust,
    connect_timeout: Duration,
    /// Over a connection that was never used before.
    fresh: bool,
}

/// One request, ready but for its connection.
pub(crate) struct Wire<'a> {
    /// The registry's name, for people; `None` when a token server is asked.
    pub(crate) registry: Option<&'a str>,
    /// What is settled about the server that is meant; found by its address when `None`.
    pub(crate) host: Option<&'a Arc<Host>>,
    /// The server that is meant, wherever `url` leads: it alone sees `authorization`.
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) authorization: Option<HeaderValue>,
    /// What must not be repeated of an answer.
    pub(crate) secrets: KnownSecrets,
    pub(crate) body: WireBody,
    /// Whether it goes over a connection of its own. One that was kept may be closed on the other
    /// side by now, and a body that can be sent once is then lost.
    pub(crate) fresh: bool,
}

pub(crate) enum WireBody {
    None,
    Bytes(Bytes),
    /// A body of known length that can be sent once. Its sender watches over its progress.
    Stream(reqwest::Body, u64),
}

/// An answer of which only status and headers have been read.
#[derive(Debug)]
pub(crate) struct Reply {
    response: reqwest::Response,
    pub(crate) host: String,
    pub(crate) request: RequestLine,
    /// Whether the registry itself answered.
    pub(crate) from_registry: bool,
    author: Author,
    secrets: KnownSecrets,
    timeouts: Timeouts,
    /// The body of a no, once it was read.
    no: Option<BytesMut>,
}

impl Transport {
    pub(crate) fn new(settings: &ClientSettings) -> Result<Self, SettingsError> {
        let mut authorities = Vec::new();
        for path in &settings.ca_files {
            authorities.extend(read_authorities(path)?);
        }
        let user_agent = HeaderValue::from_str(&settings.user_agent)
            .map_err(|_| SettingsError::UserAgent(settings.user_agent.clone()))?;
        Ok(Self {
            authorities,
            user_agent,
            hosts: HostTable::new(settings.hosts.clone(), settings.timeouts),
            clients: Mutex::default(),
            warnings: Mutex::default(),
        })
    }

    /// What is settled about the host of that name.
    pub(crate) fn host(&self, name: &str) -> Result<Arc<Host>, RegistryError> {
        self.hosts
            .find(name)
            .map_err(|source| bad_settings(name, source))
    }

    /// What is settled about a mirror of `registry`.
    pub(crate) fn mirror_host(
        &self,
        registry: &Host,
        name: &str,
    ) -> Result<Arc<Host>, RegistryError> {
        let host = self.hosts.find_mirror(registry, name);
        host.map_err(|source| bad_settings(name, source))
    }

    fn client(
        &self,
        url: &Url,
        host: &Host,
        fresh: bool,
    ) -> Result<reqwest::Client, RegistryError> {
        host.warn_if_insecure();
        let way = Way {
            direct: is_loopback(url),
            trust: host.trust.clone(),
            connect_timeout: host.timeouts.connect,
            fresh,
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&way) {
            return Ok(client.clone());
        }
        let client = self.build(&way, host_and_port(url))?;
        clients.insert(way, client.clone());
        Ok(client)
    }

    fn build(&self, way: &Way, host: &str) -> Result<reqwest::Client, RegistryError> {
        let mut authorities = self.authorities.clone();
        for path in &way.trust.ca_files {
            let more = read_authorities(path).map_err(|source| bad_settings(host, source))?;
            authorities.extend(more);
        }
        let identity = match &way.trust.certificate {
            Some(pair) => {
                let read = read_identity(pair);
                Some(read.map_err(|source| bad_settings(host, source))?)
            }
            None => None,
        };
        let builder = || {
            let mut builder = reqwest::Client::builder()
                .user_agent(self.user_agent.clone())
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(way.connect_timeout)
                .pool_max_idle_per_host(if way.fresh { 0 } else { usize::MAX })
                .tls_danger_accept_invalid_certs(way.trust.insecure)
                .tls_certs_merge(authorities.iter().cloned());
            if let Some(identity) = &identity {
                builder = builder.identity(identity.clone());
            }
            if way.direct {
                builder.no_proxy()
            } else {
                builder
            }
        };
        // Where the system has no authorities at all (a bare container) no client can be made of
        // them, not even to speak plain HTTP.
        builder()
            .build()
            .or_else(|_| {
                let bundled = webpki_root_certs::TLS_SERVER_ROOT_CERTS
                    .iter()
                    .filter_map(|certificate| Certificate::from_der(certificate).ok());
                builder().tls_certs_only(bundled).build()
            })
            .map_err(|error| RegistryError::Setup(Cause::of(&error)))
    }

    /// Shows what a registry wants its users to know, each text once. Nothing is done about it.
    fn pass_on_warnings(&self, host: &str, headers: &HeaderMap, secrets: &KnownSecrets) {
        let warnings = headers.get_all(WARNING).into_iter();
        for text in warnings.filter_map(|value| warning_text(value.to_str().ok()?)) {
            let text = printable(&secrets.hide(text), LONGEST_WARNING);
            let mut shown = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
            if shown.len() < MOST_WARNINGS && shown.insert((host.to_owned(), text.clone())) {
                tracing::warn!("registry {host} warns: {text}");
            }
        }
    }

    /// Sends a request and waits for the head of the answer.
    pub(crate) async fn send(&self, wire: Wire<'_>) -> Result<Reply, RegistryError> {
        let Wire {
            registry,
            host: meant,
            endpoint,
            method,
            mut url,
            headers,
            authorization,
            secrets,
            body,
            fresh,
        } = wire;
        let mut stream = None;
        let mut bytes = None;
        match body {
            WireBody::None => {}
            WireBody::Bytes(whole) => bytes = Some(whole),
            WireBody::Stream(body, length) => stream = Some((body, length)),
        }
        let streams = stream.is_some();
        let mut hops = 0;
        loop {
            let is_meant = endpoint.owns(&url);
            let registry = registry.filter(|_| is_meant);
            // Whom we are sent to is another host, with settings of its own.
            let settled = match meant.filter(|_| is_meant) {
                Some(host) => Arc::clone(host),
                None => self.host(host_and_port(&url))?,
            };
            let timeouts = settled.timeouts;
            let host = registry.unwrap_or(host_and_port(&url)).to_owned();
            let author = match (is_meant, registry) {
                (true, Some(_)) => Author::Registry,
                (true, None) => Author::TokenServer,
                (false, _) => Author::Elsewhere,
            };
            let line = line(&method, &url, registry.is_some());
            let mut request = self
                .client(&url, &settled, fresh)?
                .request(method.clone(), url.clone())
                .headers(headers.clone());
            if is_meant && let Some(authorization) = &authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
            if let Some(bytes) = &bytes {
                request = request.body(bytes.clone());
            } else if let Some((body, length)) = stream.take() {
                // Without it the body would go in chunks, which storage behind registries refuses.
                request = request.header(CONTENT_LENGTH, length).body(body);
            } else if method == Method::POST || method == Method::PUT {
                request = request.header(CONTENT_LENGTH, 0);
            }
            // Told by its real name, which for Docker Hub is not the registry's.
            let peer = host_and_port(&url);
            let answer = if streams {
                request.send().await
            } else {
                let patience = timeouts.header.unwrap_or(timeouts.read);
                match tokio::time::timeout(patience, request.send()).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        let cause = waited(patience);
                        let failure = ConnectionFailure::new(peer, &line, Step::Wait, cause);
                        return Err(RegistryError::connection(failure));
                    }
                }
            };
            let response = answer.map_err(|error| {
                RegistryError::connection(ConnectionFailure::of(peer, &line, &error))
            })?;
            tracing::debug!(%host, request = %line, status = response.status().as_u16(), "answered");
            if registry.is_some() {
                self.pass_on_warnings(&host, response.headers(), &secrets);
            }
            let reply = Reply {
                response,
                host,
                request: line,
                from_registry: registry.is_some(),
                author,
                secrets: secrets.clone(),
                timeouts,
                no: None,
            };
            if !reply.asks_to_go_elsewhere(&method, streams) {
                return Ok(reply);
            }
            if hops == MAX_REDIRECTS {
                return Err(reply.bad(Problem::TooManyRedirects));
            }
            let target = reply.location(endpoint)?;
            if bytes.is_some() && !endpoint.owns(&target) {
                // A body may hold a secret (a refresh token), so it stays with whom it is meant for.
                return Ok(reply);
            }
            if let Err(source) = endpoint.check_named_url(&target) {
                let host = destination(&target);
                return Err(reply.bad(Problem::Distrusted { host, source }));
            }
            hops += 1;
            url = target;
        }
    }
}

fn bad_settings(host: &str, source: SettingsError) -> RegistryError {
    RegistryError::Settings {
        host: host.to_owned(),
        source: Box::new(source),
    }
}

fn line(method: &Method, url: &Url, from_registry: bool) -> RequestLine {
    let path = if from_registry {
        url.path().to_owned()
    } else {
        format!("{}://{}{}", url.scheme(), host_and_port(url), url.path())
    };
    RequestLine {
        method: method.to_string(),
        path,
    }
}

fn waited(patience: Duration) -> Cause {
    Cause::text(format!("nothing came for {} s", patience.as_secs()))
}

impl Reply {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// A header that can be read as text.
    pub(crate) fn header(&self, name: impl Into<HeaderName>) -> Option<&str> {
        self.headers().get(name.into())?.to_str().ok()
    }

    /// The length that the answer promises.
    pub(crate) fn promised_length(&self) -> Option<u64> {
        self.header(CONTENT_LENGTH)?.trim().parse().ok()
    }

    fn asks_to_go_elsewhere(&self, method: &Method, streams: bool) -> bool {
        let reads = method == Method::GET || method == Method::HEAD;
        match self.status().as_u16() {
            301..=303 => reads,
            307 | 308 => !streams,
            _ => false,
        }
    }

    /// Where `Location` leads, resolved against the request's URL.
    pub(crate) fn location(&self, endpoint: &Endpoint) -> Result<Url, RegistryError> {
        self.header(LOCATION)
            .and_then(|text| self.resolve(text, endpoint))
            .ok_or_else(|| self.bad(Problem::NoLocation))
    }

    /// Where an address in the answer leads, seen from the request's URL.
    pub(crate) fn resolve(&self, address: &str, endpoint: &Endpoint) -> Option<Url> {
        let target = self.response.url().join(address).ok()?;
        Some(endpoint.place(target))
    }

    /// The next piece of the body.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let patience = self.timeouts.read;
        match tokio::time::timeout(patience, self.response.chunk()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(error)) => Err(RegistryError::connection(ConnectionFailure::of(
                &self.host,
                &self.request,
                &error,
            ))),
            Err(_) => Err(self.broken(Step::Wait, waited(patience))),
        }
    }

    /// The whole body, when it has no more than `limit` bytes and does not take forever.
    pub(crate) async fn bytes(&mut self, limit: usize) -> Result<Bytes, RegistryError> {
        let patience = self.timeouts.document;
        match tokio::time::timeout(patience, self.bytes_up_to(limit)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let text = format!("the answer was not whole after {} s", patience.as_secs());
                Err(self.broken(Step::Wait, Cause::text(text)))
            }
        }
    }

    async fn bytes_up_to(&mut self, limit: usize) -> Result<Bytes, RegistryError> {
        let limit_in_bytes = limit as u64;
        let too_large = Problem::TooLarge {
            limit: limit_in_bytes,
        };
        if self
            .promised_length()
            .is_some_and(|length| length > limit_in_bytes)
        {
            return Err(self.bad(too_large));
        }
        let mut bytes = BytesMut::new();
        while let Some(piece) = self.chunk().await? {
            if bytes.len() + piece.len() > limit {
                return Err(self.bad(too_large));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.freeze())
    }

    pub(crate) fn broken(&self, step: Step, cause: Cause) -> RegistryError {
        let failure = ConnectionFailure::new(&self.host, &self.request, step, cause);
        RegistryError::connection(failure)
    }

    /// Says that the answer cannot be used.
    pub(crate) fn bad(&self, problem: Problem) -> RegistryError {
        RegistryError::bad_answer(&self.host, self.request.clone(), problem)
    }

    /// What an answer that is no says, in its own words. The answer can be used as before.
    pub(crate) async fn error_text(&mut self) -> String {
        let body = self.read_no().await;
        let text = String::from_utf8_lossy(&body).into_owned();
        self.no = Some(body);
        text
    }

    async fn read_no(&mut self) -> BytesMut {
        if let Some(body) = self.no.take() {
            return body;
        }
        let mut body = BytesMut::new();
        let reading = async {
            while body.len() < MAX_ERROR_BODY
                && let Ok(Some(piece)) = self.response.chunk().await
            {
                body.extend_from_slice(&piece);
            }
        };
        // A body that trickles is left where the patience ends.
        let _ = tokio::time::timeout(self.timeouts.document, reading).await;
        body.truncate(MAX_ERROR_BODY);
        body
    }

    /// Reads an answer that is no. What of its body cannot be read is left out.
    pub(crate) async fn into_answer(mut self) -> Answer {
        let retry_after = self.header(RETRY_AFTER).and_then(read_retry_after);
        let body = self.read_no().await;
        if self.author == Author::Elsewhere {
            // The query is what storage knows us by.
            let url = self.response.url();
            for (_, value) in url.query_pairs() {
                self.secrets.add(value);
            }
        }
        let (errors, excerpt) = read_error_body(&body, self.author, &self.secrets);
        Answer {
            status: self.status().as_u16(),
            host: self.host,
            from_registry: self.from_registry,
            request: self.request,
            errors,
            excerpt,
            retry_after,
            tally: Tally::ONE,
        }
    }

    pub(crate) async fn into_error(self) -> RegistryError {
        RegistryError::Answer(Box::new(self.into_answer().await))
    }
}

/// Seconds or a date (RFC 9110, section 10.2.3).
fn read_retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = rfc2822::DateTimeParser::new()
        .relaxed_weekday(true)
        .parse_timestamp(text)
        .ok()?;
    Some(until(date, Timestamp::try_from(SystemTime::now()).ok()?))
}

fn until(date: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(date.duration_since(now)).unwrap_or_default()
}

/// The text of a `Warning` of the kind that registries may send (distribution-spec, "Warnings"):
/// `299 - "text"`.
fn warning_text(value: &str) -> Option<&str> {
    value.strip_prefix("299 - \"")?.strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_comes_as_seconds_or_date() {
        let seconds = |text: &str| read_retry_after(text).map(|wait| wait.as_secs());
        assert_eq!(seconds("120"), Some(120));
        assert_eq!(seconds(" 0 "), Some(0));
        assert_eq!(seconds("Wed, 21 Oct 2015 07:28:00 GMT"), Some(0));
        assert!(seconds("Fri, 31 Dec 2999 23:59:59 GMT").unwrap() > 1_000_000);
        assert_eq!(seconds("soon"), None);
        assert_eq!(seconds("-1"), None);
        let date = Timestamp::from_second(100).unwrap();
        let wait = until(date, Timestamp::from_second(40).unwrap());
        assert_eq!(wait, Duration::from_mins(1));
    }
}
