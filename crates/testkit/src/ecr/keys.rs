//! Access keys, and the little of a signature that is looked at.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::service::Failure;

/// The access keys that may sign.
pub(super) struct Keys {
    any: bool,
    account: String,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    keys: BTreeMap<String, Key>,
    made: usize,
}

struct Key {
    secret: String,
    /// What a request must carry besides, when the key is a temporary one.
    session_token: Option<String>,
    arn: String,
}

/// A temporary key, as STS gives it out.
pub(super) struct Session {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) token: String,
}

/// Who signed a request, and for what.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Signed<'a> {
    pub(super) key: &'a str,
    pub(super) region: &'a str,
    pub(super) service: &'a str,
}

impl Keys {
    /// One permanent key to begin with.
    pub(super) fn new(account: &str, any: bool) -> Self {
        let keys = Self {
            any,
            account: account.to_owned(),
            known: Mutex::default(),
        };
        keys.add();
        keys
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The id and the secret of the first key.
    pub(super) fn first(&self) -> (String, String) {
        let known = self.lock();
        let (id, key) = known
            .keys
            .first_key_value()
            .expect("a key is made at the start");
        (id.clone(), key.secret.clone())
    }

    /// Makes a permanent key.
    pub(super) fn add(&self) -> (String, String) {
        let mut known = self.lock();
        known.made += 1;
        let number = known.made;
        let (id, secret) = (
            format!("AKIATESTKIT{number:09}"),
            format!("testkitSecretAccessKey/{number:017}"),
        );
        let key = Key {
            secret: secret.clone(),
            session_token: None,
            arn: format!("arn:aws:iam::{}:user/testkit", self.account),
        };
        known.keys.insert(id.clone(), key);
        (id, secret)
    }

    /// Makes a temporary key for a role.
    pub(super) fn assume(&self, arn: &str) -> Session {
        let mut known = self.lock();
        known.made += 1;
        let number = known.made;
        let session = Session {
            id: format!("ASIATESTKIT{number:09}"),
            secret: format!("testkitTemporarySecret/{number:017}"),
            token: format!("testkitSessionToken{number:021}=="),
        };
        let key = Key {
            secret: session.secret.clone(),
            session_token: Some(session.token.clone()),
            arn: arn.to_owned(),
        };
        known.keys.insert(session.id.clone(), key);
        session
    }

    /// Checks that a known key signed, with the session token that belongs to it.
    pub(super) fn check(
        &self,
        signed: Option<&Signed<'_>>,
        token: Option<&str>,
    ) -> Result<(), Failure> {
        let Some(signed) = signed else {
            return Err(Failure::new(
                "MissingAuthenticationTokenException",
                "Missing Authentication Token",
            ));
        };
        let good = match self.lock().keys.get(signed.key) {
            Some(key) => key.session_token.as_deref() == token,
            None => self.any,
        };
        if good {
            return Ok(());
        }
        Err(Failure::new(
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        ))
    }

    /// Whose key it is.
    pub(super) fn arn(&self, key: &str) -> String {
        match self.lock().keys.get(key) {
            Some(key) => key.arn.clone(),
            None => format!("arn:aws:iam::{}:user/unknown", self.account),
        }
    }

    /// All secret keys and session tokens.
    pub(super) fn secrets(&self) -> Vec<String> {
        let known = self.lock();
        let mut secrets = Vec::new();
        for key in known.keys.values() {
            secrets.push(key.secret.clone());
            secrets.extend(key.session_token.clone());
        }
        secrets
    }
}

impl<'a> Signed<'a> {
    /// Reads the `Authorization` header of a signed request.
    pub(super) fn parse(header: &'a str) -> Option<Self> {
        let fields = header.strip_prefix("AWS4-HMAC-SHA256 ")?;
        let field = |name: &str| {
            let mut fields = fields.split(',').map(str::trim);
            fields.find_map(|field| field.strip_prefix(name))
        };
        let (_, _) = (field("SignedHeaders=")?, field("Signature=")?);
        let mut scope = field("Credential=")?.split('/');
        let key = scope.next()?;
        let _day = scope.next()?;
        let (region, service) = (scope.next()?, scope.next()?);
        (scope.next() == Some("aws4_request")).then_some(Self {
            key,
            region,
            service,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_names_key_region_and_service() {
        let header = "AWS4-HMAC-SHA256 Credential=AKIA1/20260701/eu-west-1/ecr/aws4_request, \
                      SignedHeaders=host;x-amz-date, Signature=00ff";
        let signed = Signed::parse(header).unwrap();
        assert_eq!(
            (signed.key, signed.region, signed.service),
            ("AKIA1", "eu-west-1", "ecr")
        );
        for bad in [
            "Basic AWS4-HMAC-SHA256",
            "AWS4-HMAC-SHA256 Credential=AKIA1/20260701/eu-west-1/ecr/aws4_request",
            "AWS4-HMAC-SHA256 Credential=AKIA1, SignedHeaders=host, Signature=00",
        ] {
            assert_eq!(Signed::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn temporary_keys_need_their_session_token() {
        let keys = Keys::new("123456789012", false);
        let session = keys.assume("arn:aws:sts::123456789012:assumed-role/r/s");
        let check = |key: &str, token: Option<&str>| {
            let signed = Signed {
                key,
                region: "eu-west-1",
                service: "ecr",
            };
            keys.check(Some(&signed), token).is_ok()
        };
        assert!(check(&keys.first().0, None));
        assert!(!check(&keys.first().0, Some("other")));
        assert!(check(&session.id, Some(&session.token)));
        assert!(!check(&session.id, None));
        assert!(!check("AKIAUNKNOWN", None));
        assert!(keys.check(None, None).is_err());
        assert_eq!(keys.secrets().len(), 3);
    }
}
