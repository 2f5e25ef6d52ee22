resource "aws_db_subnet_group" "pylon" {
  name       = var.name
  subnet_ids = var.private_subnets
}

resource "aws_security_group" "database" {
  name        = "${var.name}-database"
  description = "PostgreSQL, for the tasks alone"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "database" {
  security_group_id            = aws_security_group.database.id
  description                  = "PostgreSQL from the tasks"
  referenced_security_group_id = aws_security_group.tasks.id
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}

resource "aws_rds_cluster_parameter_group" "pylon" {
  name   = var.name
  family = "aurora-postgresql17"

  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }
  parameter {
    name  = "log_min_duration_statement"
    value = "1000"
  }
  parameter {
    name  = "log_statement"
    value = "ddl"
  }
}

resource "aws_rds_cluster" "pylon" {
  # checkov:skip=CKV_AWS_162: the server signs in with a password; a token of IAM ends after 15 minutes
  cluster_identifier              = var.name
  engine                          = "aurora-postgresql"
  engine_version                  = "17.5"
  database_name                   = "pylon"
  master_username                 = "pylon"
  master_password                 = random_password.database.result
  db_subnet_group_name            = aws_db_subnet_group.pylon.name
  db_cluster_parameter_group_name = aws_rds_cluster_parameter_group.pylon.name
  vpc_security_group_ids          = [aws_security_group.database.id]
  storage_encrypted               = true
  kms_key_id                      = aws_kms_key.pylon.arn
  backup_retention_period         = 14
  preferred_backup_window         = "03:00-04:00"
  copy_tags_to_snapshot           = true
  deletion_protection             = true
  skip_final_snapshot             = false
  final_snapshot_identifier       = "${var.name}-last"
  enabled_cloudwatch_logs_exports = ["postgresql"]

  serverlessv2_scaling_configuration {
    min_capacity = var.database_min_acu
    max_capacity = var.database_max_acu
  }
}

data "aws_iam_policy_document" "monitoring" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["monitoring.rds.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "monitoring" {
  name               = "${var.name}-monitoring"
  assume_role_policy = data.aws_iam_policy_document.monitoring.json
}

resource "aws_iam_role_policy_attachment" "monitoring" {
  role       = aws_iam_role.monitoring.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/service-role/AmazonRDSEnhancedMonitoringRole"
}

resource "aws_rds_cluster_instance" "pylon" {
  count                           = var.database_instances
  identifier                      = "${var.name}-${count.index}"
  cluster_identifier              = aws_rds_cluster.pylon.id
  instance_class                  = "db.serverless"
  engine                          = aws_rds_cluster.pylon.engine
  engine_version                  = aws_rds_cluster.pylon.engine_version
  auto_minor_version_upgrade      = true
  performance_insights_enabled    = true
  performance_insights_kms_key_id = aws_kms_key.pylon.arn
  monitoring_interval             = 60
  monitoring_role_arn             = aws_iam_role.monitoring.arn
}

resource "aws_backup_vault" "pylon" {
  name        = var.name
  kms_key_arn = aws_kms_key.pylon.arn
}

resource "aws_backup_plan" "pylon" {
  name = var.name
  rule {
    rule_name         = "daily"
    target_vault_name = aws_backup_vault.pylon.name
    schedule          = "cron(0 5 * * ? *)"
    lifecycle {
      delete_after = 35
    }
  }
}

data "aws_iam_policy_document" "backup" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["backup.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "backup" {
  name               = "${var.name}-backup"
  assume_role_policy = data.aws_iam_policy_document.backup.json
}

resource "aws_iam_role_policy_attachment" "backup" {
  role       = aws_iam_role.backup.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/service-role/AWSBackupServiceRolePolicyForBackup"
}

resource "aws_backup_selection" "pylon" {
  name         = var.name
  plan_id      = aws_backup_plan.pylon.id
  iam_role_arn = aws_iam_role.backup.arn
  resources    = [aws_rds_cluster.pylon.arn]
}
