# Each secret is a variable of the tasks.
resource "random_password" "database" {
  length  = 40
  special = false
}

resource "random_id" "token" {
  for_each    = toset(["admin", "metrics", "secret_key"])
  byte_length = 32
}

resource "aws_secretsmanager_secret" "pylon" {
  # checkov:skip=CKV2_AWS_57: the tokens are rotated by PYLON_ADMIN_TOKEN_PREVIOUS and a deployment (docs/operations)
  for_each                = local.secrets
  name                    = "${var.name}/${each.key}"
  kms_key_id              = aws_kms_key.pylon.arn
  recovery_window_in_days = 30
}

resource "aws_secretsmanager_secret_version" "pylon" {
  for_each      = local.secrets
  secret_id     = aws_secretsmanager_secret.pylon[each.key].id
  secret_string = each.value
}

locals {
  secrets = {
    DATABASE_URL        = "postgresql://pylon:${random_password.database.result}@${aws_rds_cluster.pylon.endpoint}:5432/pylon?sslmode=require"
    PYLON_ADMIN_TOKEN   = random_id.token["admin"].hex
    PYLON_METRICS_TOKEN = random_id.token["metrics"].hex
    PYLON_SECRET_KEY    = random_id.token["secret_key"].hex
  }
}
