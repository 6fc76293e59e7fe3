//! What AWS is: ECR's tokens and repositories, on the AWS SDK.
