//! Meeting a registry's demands: Basic, and tokens of token servers.
//!
//! Nothing is shown before a registry asks. Its first challenge is remembered, so that each further
//! request brings what is needed from the start; tokens are kept until shortly before they expire.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Deserialize;
use tierce_image::BoxError;
use tierce_oci::Repository;
use tokio::sync::Mutex;
use url::Url;

use crate::challenge::{Access, Bearer, Challenge, covers};
use crate::credentials::{CredentialKind, CredentialSource, Credentials};
use crate::endpoint::{Endpoint, destination};
use crate::error::{Problem, Refusal, RegistryError, RequestLine};
use crate::hosts::Host;
use crate::secret::{KnownSecrets, Secret};
use crate::transport::{Reply, Transport, Wire, WireBody};

/// What a token is good for when its server does not say (distribution, `spec/auth/token.md`).
const DEFAULT_LIFETIME: Duration = Duration::from_mins(1);

/// How long before its end a token is no longer used, so that it does not expire on the way.
const MARGIN: Duration = Duration::from_secs(10);

/// How much a token server may answer. Tokens of some kilobytes occur.
const MAX_TOKEN_ANSWER: usize = 64 * 1024;

/// The user name that marks an identity token where only a password is taken.
const TOKEN_USER: &str = "<token>";

/// How we name ourselves to `OAuth2` token servers.
const CLIENT_ID: &str = "tierce";

/// What one registry wants, and what we have for it.
#[derive(Debug, Default)]
pub(crate) struct Authenticator {
    challenge: RwLock<Option<Challenge>>,
    /// By repository path: podman's files may know different users for different paths.
    credentials: Mutex<BTreeMap<String, Option<Arc<Credentials>>>>,
    /// Credentials that took the place of others, until they are seen to do better.
    unproved: std::sync::Mutex<Vec<Arc<Credentials>>>,
    tokens: Mutex<BTreeMap<TokenKey, Token>>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct TokenKey {
    /// Whose token it is, by the repository that the credentials were looked up for.
    path: String,
    realm: String,
    service: Option<String>,
    scopes: Vec<String>,
}

impl TokenKey {
    fn does_for(&self, wanted: &Self) -> bool {
        self.path == wanted.path
            && self.realm == wanted.realm
            && self.service == wanted.service
            && covers(&self.scopes, &wanted.scopes)
    }
}

#[derive(Debug, Clone)]
struct Token {
    value: Secret,
    good_until: Instant,
}

/// What a request shows of us.
#[derive(Clone, Default)]
pub(crate) struct Authorization {
    /// The header's value; `None` when there is nothing to show.
    pub(crate) header: Option<HeaderValue>,
    /// All that must not come back in the server's words.
    pub(crate) secrets: KnownSecrets,
    /// What is behind it; `None` for nobody in particular.
    credentials: Option<Arc<Credentials>>,
    /// The kept token that it is.
    key: Option<TokenKey>,
}

impl Authorization {
    fn origin(&self) -> Option<&str> {
        self.credentials.as_ref().map(|found| found.origin.as_str())
    }

    /// Whether it is a token that anybody may have.
    pub(crate) fn is_anonymous_token(&self) -> bool {
        self.header.is_some() && self.credentials.is_none()
    }
}

impl fmt::Debug for Authorization {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Authorization")
            .field("origin", &self.origin())
            .finish_non_exhaustive()
    }
}

/// All that authentication at one registry needs at hand.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) registry: &'a str,
    pub(crate) endpoint: &'a Endpoint,
    /// What is settled about the registry.
    pub(crate) host: &'a Arc<Host>,
    pub(crate) transport: &'a Transport,
    pub(crate) source: &'a dyn CredentialSource,
}

impl Context<'_> {
    fn repository(&self, path: &str) -> Repository {
        Repository {
            registry: self.registry.to_owned(),
            path: path.to_owned(),
        }
    }

    fn no_credentials(&self, source: BoxError) -> RegistryError {
        RegistryError::Credentials {
            registry: self.registry.to_owned(),
            source,
        }
    }
}

impl Authenticator {
    /// What to show with a request, by what is known of the registry.
    pub(crate) async fn prepare(
        &self,
        context: Context<'_>,
        access: &Access<'_>,
    ) -> Result<Authorization, RegistryError> {
        let known = self
            .challenge
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match known {
            Some(challenge) => self.meet(context, access, &challenge).await,
            None => Ok(Authorization::default()),
        }
    }

    /// Answers a 401: with what to show instead, or with the error when there is nothing else.
    pub(crate) async fn answer(
        &self,
        context: Context<'_>,
        access: &Access<'_>,
        shown: &Authorization,
        refused: Reply,
    ) -> Result<Authorization, RegistryError> {
        let headers = refused.headers().get_all("www-authenticate");
        let headers = headers.iter().filter_map(|header| header.to_str().ok());
        let Some(challenge) = Challenge::pick(headers) else {
            if refused.headers().contains_key("www-authenticate") {
                return Err(refused.bad(Problem::UnknownChallenge));
            }
            return Err(self.refusal(context, shown, refused).await);
        };
        self.remember(&challenge);
        if let Some(key) = &shown.key {
            self.tokens.lock().await.remove(key);
        }
        let next = self.meet(context, access, &challenge).await?;
        let next = if next.header.is_some() && next.header == shown.header {
            // Nothing else to show, unless its source has something newer.
            match self.renew(context, access, shown).await? {
                Some(renewed) => renewed,
                None => return Err(self.refusal(context, &next, refused).await),
            }
        } else {
            next
        };
        if next.header.is_none() {
            return Err(self.refusal(context, &next, refused).await);
        }
        // The body is read so that the connection can be used again.
        let _ = refused.into_answer().await;
        Ok(next)
    }

    /// Puts something newer in the place of what was shown and is taken no more; `None` when there is
    /// nothing newer, or when what was shown is new itself: then its age is not what is wrong.
    pub(crate) async fn renew(
        &self,
        context: Context<'_>,
        access: &Access<'_>,
        shown: &Authorization,
    ) -> Result<Option<Authorization>, RegistryError> {
        if let Some(key) = &shown.key {
            self.tokens.lock().await.remove(key);
        }
        if let Some(refused) = &shown.credentials
            && !self.replace(context, access.path, refused).await?
            && shown.key.is_none()
        {
            return Ok(None);
        }
        let next = self.prepare(context, access).await?;
        Ok(Some(next).filter(|next| next.header.is_some() && next.header != shown.header))
    }

    /// Asks for other credentials than `refused`, once for all that showed them.
    async fn replace(
        &self,
        context: Context<'_>,
        path: &str,
        refused: &Arc<Credentials>,
    ) -> Result<bool, RegistryError> {
        let mut known = self.credentials.lock().await;
        let current = known.get(path).and_then(Option::as_ref);
        if current.is_none_or(|current| !Arc::ptr_eq(current, refused)) {
            // Somebody else was faster.
            return Ok(current.is_some());
        }
        if self.unproved().iter().any(|new| Arc::ptr_eq(new, refused)) {
            return Ok(false);
        }
        let repository = context.repository(path);
        let renewed = context.source.renew(&repository, refused).await;
        let Some(renewed) = renewed.map_err(|source| context.no_credentials(source))? else {
            return Ok(false);
        };
        tracing::debug!(
            registry = context.registry,
            origin = renewed.origin,
            "credentials renewed"
        );
        let renewed = Arc::new(renewed);
        self.unproved().push(Arc::clone(&renewed));
        known.insert(path.to_owned(), Some(renewed));
        Ok(true)
    }

    fn unproved(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Credentials>>> {
        self.unproved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was shown is taken.
    pub(crate) fn proved(&self, shown: &Authorization) {
        if let Some(shown) = &shown.credentials {
            self.unproved().retain(|new| !Arc::ptr_eq(new, shown));
        }
    }

    /// The error of a 401 that nothing can be done about.
    pub(crate) async fn refusal(
        &self,
        context: Context<'_>,
        shown: &Authorization,
        refused: Reply,
    ) -> RegistryError {
        let answer = refused.into_answer().await;
        RegistryError::Unauthorized(Box::new(Refusal {
            registry: context.registry.to_owned(),
            request: answer.request.clone(),
            credentials: shown.origin().map(str::to_owned),
            answer,
        }))
    }

    fn remember(&self, challenge: &Challenge) {
        let mut known = self
            .challenge
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let kept = match challenge {
            // The next request needs scopes of its own.
            Challenge::Bearer(bearer) if bearer.is_conventional() => Challenge::Bearer(Bearer {
                scopes: Vec::new(),
                ..bearer.clone()
            }),
            other => other.clone(),
        };
        *known = Some(kept);
    }

    async fn credentials(
        &self,
        context: Context<'_>,
        path: &str,
    ) -> Result<Option<Arc<Credentials>>, RegistryError> {
        // Held while a helper runs: one question is enough for all that wait.
        let mut known = self.credentials.lock().await;
        let is_good = |credentials: &Option<Arc<Credentials>>| {
            let good_until = credentials.as_ref().and_then(|known| known.good_until);
            good_until.is_none_or(|end| Instant::now() < end)
        };
        if let Some(credentials) = known.get(path).filter(|known| is_good(known)) {
            return Ok(credentials.clone());
        }
        let repository = context.repository(path);
        let found = context
            .source
            .credentials(&repository)
            .await
            .map_err(|source| context.no_credentials(source))?;
        if let Some(found) = &found {
            tracing::debug!(
                registry = context.registry,
                origin = found.origin,
                "credentials"
            );
        }
        let found = found.map(Arc::new);
        known.insert(path.to_owned(), found.clone());
        Ok(found)
    }

    async fn meet(
        &self,
        context: Context<'_>,
        access: &Access<'_>,
        challenge: &Challenge,
    ) -> Result<Authorization, RegistryError> {
        let credentials = self.credentials(context, access.path).await?;
        let origin = credentials.as_ref().map(|found| found.origin.as_str());
        let kind = credentials.as_ref().map(|found| &found.kind);
        let mut secrets = secrets_of(kind);
        let direct = match (challenge, kind) {
            (_, Some(CredentialKind::RegistryToken(token))) => Some(bearer(token)),
            (Challenge::Basic, Some(CredentialKind::Password { username, password })) => {
                Some(basic(username, password))
            }
            (Challenge::Basic, Some(CredentialKind::IdentityToken(_))) => {
                return Err(bad_challenge(context, Problem::WantsPassword));
            }
            (Challenge::Basic, None) => return Ok(Authorization::default()),
            (Challenge::Bearer(_), _) => None,
        };
        match (direct, challenge) {
            (None, Challenge::Bearer(wanted)) => {
                let (token, key) = self.token(context, access, wanted, kind, origin).await?;
                secrets.add(token.expose());
                Ok(Authorization {
                    header: Some(bearer(&token)),
                    secrets,
                    credentials,
                    key: Some(key),
                })
            }
            (header, _) => Ok(Authorization {
                header,
                secrets,
                credentials,
                key: None,
            }),
        }
    }

    async fn token(
        &self,
        context: Context<'_>,
        access: &Access<'_>,
        wanted: &Bearer,
        kind: Option<&CredentialKind>,
        origin: Option<&str>,
    ) -> Result<(Secret, TokenKey), RegistryError> {
        let key = TokenKey {
            path: access.path.to_owned(),
            realm: wanted.realm.clone(),
            service: wanted.service.clone(),
            scopes: wanted.scopes_for(access),
        };
        // Held while the token is fetched: those who wait need the same one.
        let mut tokens = self.tokens.lock().await;
        let now = Instant::now();
        tokens.retain(|_, token| now < token.good_until);
        if let Some((kept, token)) = tokens.iter().find(|(kept, _)| kept.does_for(&key)) {
            return Ok((token.value.clone(), kept.clone()));
        }
        let token = fetch(context, &key, kind)
            .await
            .map_err(|error| explain(context, error, origin))?;
        let value = token.value.clone();
        tokens.insert(key.clone(), token);
        Ok((value, key))
    }
}

/// Says of a token server's no that it is about the credentials, when it is.
fn explain(context: Context<'_>, error: RegistryError, origin: Option<&str>) -> RegistryError {
    match error {
        // 400 is OAuth2's `invalid_grant`: the refresh token is spent (RFC 6749, section 5.2).
        RegistryError::Answer(answer)
            if matches!(answer.status, 401 | 403)
                || (answer.status == 400
                    && answer
                        .errors
                        .iter()
                        .any(|error| error.code == "invalid_grant")) =>
        {
            RegistryError::Unauthorized(Box::new(Refusal {
                registry: context.registry.to_owned(),
                request: answer.request.clone(),
                credentials: origin.map(str::to_owned),
                answer: *answer,
            }))
        }
        other => RegistryError::Token {
            registry: context.registry.to_owned(),
            source: Box::new(other),
        },
    }
}

async fn fetch(
    context: Context<'_>,
    key: &TokenKey,
    kind: Option<&CredentialKind>,
) -> Result<Token, RegistryError> {
    let asked = Instant::now();
    let realm = check_realm(context, &key.realm)?;
    let secrets = || secrets_of(kind);
    let mut reply = match kind {
        Some(CredentialKind::IdentityToken(token)) => {
            let reply = exchange(context, realm.clone(), key, token, secrets()).await?;
            if reply.status().as_u16() == 404 {
                // Servers without OAuth2 take the token as a password (GCR once was one).
                let header = basic(TOKEN_USER, token);
                get(context, realm, key, None, Some((header, secrets()))).await?
            } else {
                reply
            }
        }
        Some(CredentialKind::Password { username, password }) => {
            let header = basic(username, password);
            let shown = Some((header, secrets()));
            get(context, realm, key, Some(username), shown).await?
        }
        Some(CredentialKind::RegistryToken(_)) | None => {
            get(context, realm, key, None, None).await?
        }
    };
    if !reply.status().is_success() {
        return Err(reply.into_error().await);
    }
    let body = reply.bytes(MAX_TOKEN_ANSWER).await?;
    read_token(&body, asked).ok_or_else(|| reply.bad(Problem::NoToken))
}

/// A challenge that leads nowhere. It is remembered from another request, so none is named but the
/// root of the API, which asks the same.
fn bad_challenge(context: Context<'_>, problem: Problem) -> RegistryError {
    let request = RequestLine {
        method: "GET".to_owned(),
        path: "/v2/".to_owned(),
    };
    RegistryError::bad_answer(context.registry, request, problem)
}

fn check_realm(context: Context<'_>, realm: &str) -> Result<Url, RegistryError> {
    let url = Url::parse(realm).map_err(|_| bad_challenge(context, Problem::BadRealm))?;
    let url = context.endpoint.place(url);
    match context.endpoint.check_named_url(&url) {
        Ok(()) => Ok(url),
        Err(source) => {
            let host = destination(&url);
            Err(bad_challenge(context, Problem::Distrusted { host, source }))
        }
    }
}

/// The GET that all token servers know (distribution, `spec/auth/token.md`).
async fn get(
    context: Context<'_>,
    mut realm: Url,
    key: &TokenKey,
    account: Option<&str>,
    shown: Option<(HeaderValue, KnownSecrets)>,
) -> Result<Reply, RegistryError> {
    {
        let mut query = realm.query_pairs_mut();
        if let Some(service) = &key.service {
            query.append_pair("service", service);
        }
        for scope in &key.scopes {
            query.append_pair("scope", scope);
        }
        if let Some(account) = account {
            query.append_pair("account", account);
        }
    }
    let (authorization, secrets) = shown.unzip();
    let request = TokenRequest {
        method: Method::GET,
        url: realm,
        headers: HeaderMap::new(),
        authorization,
        secrets: secrets.unwrap_or_default(),
        body: WireBody::None,
    };
    send(context, request).await
}

/// The `OAuth2` POST that an identity token needs (distribution, `spec/auth/oauth.md`).
async fn exchange(
    context: Context<'_>,
    realm: Url,
    key: &TokenKey,
    token: &Secret,
    secrets: KnownSecrets,
) -> Result<Reply, RegistryError> {
    let scope = key.scopes.join(" ");
    let service = key.service.as_deref().unwrap_or_default();
    let form = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "refresh_token")
        .append_pair("service", service)
        .append_pair("client_id", CLIENT_ID)
        .append_pair("scope", &scope)
        .append_pair("refresh_token", token.expose())
        .finish();
    let mut headers = HeaderMap::new();
    let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
    headers.insert(CONTENT_TYPE, form_type);
    let request = TokenRequest {
        method: Method::POST,
        url: realm,
        headers,
        authorization: None,
        secrets,
        body: WireBody::Bytes(Bytes::from(form)),
    };
    send(context, request).await
}

struct TokenRequest {
    method: Method,
    url: Url,
    headers: HeaderMap,
    authorization: Option<HeaderValue>,
    secrets: KnownSecrets,
    body: WireBody,
}

/// Sends a request to a token server, which may be another host than the registry: it is the one
/// that the authorization is for.
async fn send(context: Context<'_>, request: TokenRequest) -> Result<Reply, RegistryError> {
    let server =
        Endpoint::at(&request.url).ok_or_else(|| bad_challenge(context, Problem::BadRealm))?;
    context
        .transport
        .send(Wire {
            registry: None,
            host: context.endpoint.owns(&request.url).then_some(context.host),
            endpoint: &server,
            method: request.method,
            url: request.url,
            headers: request.headers,
            authorization: request.authorization,
            secrets: request.secrets,
            body: request.body,
            fresh: false,
        })
        .await
}

fn read_token(body: &[u8], asked: Instant) -> Option<Token> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<f64>,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let value = [answer.token, answer.access_token]
        .into_iter()
        .flatten()
        .find(|token| !token.is_empty())?;
    // What cannot stand in a header is no token.
    HeaderValue::from_str(&value).ok()?;
    let lifetime = answer
        .expires_in
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|lifetime| !lifetime.is_zero())
        .unwrap_or(DEFAULT_LIFETIME);
    let good_until = asked.checked_add(lifetime.saturating_sub(MARGIN))?;
    Some(Token {
        value: Secret::new(value),
        good_until,
    })
}

fn basic(username: &str, password: &Secret) -> HeaderValue {
    let pair = pair(username, password);
    hidden(&format!("Basic {}", STANDARD.encode(pair)))
}

fn pair(username: &str, password: &Secret) -> String {
    format!("{username}:{}", password.expose())
}

/// What servers are shown of these credentials, in one form or another.
fn secrets_of(kind: Option<&CredentialKind>) -> KnownSecrets {
    let mut secrets = KnownSecrets::default();
    let (username, secret) = match kind {
        None => return secrets,
        Some(CredentialKind::Password { username, password }) => (username.as_str(), password),
        Some(CredentialKind::IdentityToken(token)) => (TOKEN_USER, token),
        Some(CredentialKind::RegistryToken(token)) => {
            secrets.add(token.expose());
            return secrets;
        }
    };
    secrets.add(secret.expose());
    secrets.add(pair(username, secret));
    let header = STANDARD.encode(pair(username, secret));
    secrets.add(format!("Basic {header}"));
    secrets
}

fn bearer(token: &Secret) -> HeaderValue {
    hidden(&format!("Bearer {}", token.expose()))
}

/// A header's value that the HTTP libraries do not show in their logs either.
fn hidden(text: &str) -> HeaderValue {
    // A token with a line break in it is refused by the server like any other wrong one.
    let mut value =
        HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("Bearer"));
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_answers_are_read_leniently_and_kept_briefly() {
        let now = Instant::now();
        let read = |body: &str| {
            read_token(body.as_bytes(), now)
                .map(|token| (token.value.expose().to_owned(), token.good_until - now))
        };
        let seconds = Duration::from_secs;
        assert_eq!(
            read(r#"{"token":"a"}"#),
            Some(("a".to_owned(), seconds(50)))
        );
        assert_eq!(
            read(r#"{"access_token":"b","expires_in":3600,"scope":"x"}"#),
            Some(("b".to_owned(), seconds(3590)))
        );
        assert_eq!(
            read(r#"{"token":"","access_token":"b","expires_in":5}"#),
            Some(("b".to_owned(), seconds(0)))
        );
        assert_eq!(
            read(r#"{"token":"a","expires_in":-7}"#),
            Some(("a".to_owned(), seconds(50)))
        );
        for body in ["", "{}", "[]", r#"{"token":""}"#, r#"{"token":"a\nb"}"#] {
            assert_eq!(read(body), None, "{body}");
        }
        assert_eq!(
            read(r#"{"token":"a","expires_in":1e300}"#).map(|it| it.1),
            Some(seconds(50))
        );
    }

    #[test]
    fn what_is_shown_to_servers_is_not_shown_to_people() {
        let header = basic("user", &Secret::new("hunter2"));
        assert_eq!(header.to_str().unwrap(), "Basic dXNlcjpodW50ZXIy");
        assert_eq!(format!("{header:?}"), "Sensitive");
        let shown = Authorization {
            header: Some(bearer(&Secret::new("hunter2"))),
            ..Authorization::default()
        };
        assert!(!format!("{shown:?}").contains("hunter2"));
    }
}
