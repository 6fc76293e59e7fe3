//! ECR Public's API: the one action that pulls need.

use serde_json::{Value, json};

use super::service::{Failure, unknown_operation};
use super::{Core, authorization_token};

impl Core {
    pub(super) fn ecr_public(&self, action: &str) -> Result<Value, Failure> {
        if action != "GetAuthorizationToken" {
            return Err(unknown_operation(action));
        }
        // One object where ECR has a list of them.
        Ok(json!({
            "authorizationData": {
                "authorizationToken": authorization_token(&self.public_passwords.issue()),
                "expiresAt": self.token_end(),
            }
        }))
    }
}
