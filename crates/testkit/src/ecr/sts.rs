//! STS, in its query protocol: who somebody is, and roles.

use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::Value;

use super::Core;
use super::service::{Failure, escape, unknown_operation, xml};
use crate::token::rfc3339;

const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

impl Core {
    pub(super) fn sts(
        &self,
        action: &str,
        form: &Value,
        key: &str,
    ) -> Result<Response<Body>, Failure> {
        let result = match action {
            "GetCallerIdentity" => {
                let arn = escape(&self.keys.arn(key));
                let account = arn.split(':').nth(4).unwrap_or(&self.account);
                format!("<Arn>{arn}</Arn><UserId>{key}</UserId><Account>{account}</Account>")
            }
            "AssumeRole" => self.assume_role(form)?,
            _ => return Err(unknown_operation(action)),
        };
        let text = format!(
            "<{action}Response xmlns=\"{NAMESPACE}\"><{action}Result>{result}</{action}Result>\
             <ResponseMetadata><RequestId>5e551011</RequestId></ResponseMetadata></{action}Response>"
        );
        Ok(xml(StatusCode::OK, &text))
    }

    fn assume_role(&self, form: &Value) -> Result<String, Failure> {
        let missing = |name: &str| Failure::new("ValidationError", &format!("{name} is missing"));
        let text = |name: &str| form[name].as_str().ok_or_else(|| missing(name));
        let (role, name) = (text("RoleArn")?, text("RoleSessionName")?);
        // arn:aws:iam::ACCOUNT:role/PATH/ROLE
        let parts: Vec<&str> = role.splitn(6, ':').collect();
        let [_, partition, _, _, account, resource] = parts[..] else {
            return Err(Failure::new(
                "ValidationError",
                &format!("{role} is invalid"),
            ));
        };
        let last = resource.rsplit('/').next().unwrap_or(resource);
        let arn = format!("arn:{partition}:sts::{account}:assumed-role/{last}/{name}");
        let session = self.keys.assume(&arn);
        let seconds = form["DurationSeconds"].as_str();
        let seconds = seconds.and_then(|seconds| seconds.parse().ok());
        let end = SystemTime::now() + Duration::from_secs(seconds.unwrap_or(3600));
        Ok(format!(
            "<AssumedRoleUser><AssumedRoleId>AROATESTKIT:{}</AssumedRoleId><Arn>{}</Arn>\
             </AssumedRoleUser><Credentials><AccessKeyId>{}</AccessKeyId>\
             <SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken>\
             <Expiration>{}</Expiration></Credentials>",
            escape(name),
            escape(&arn),
            session.id,
            session.secret,
            session.token,
            rfc3339(end)
        ))
    }
}
