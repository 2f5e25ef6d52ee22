locals {
  port_by_role  = { http = 4321, ws = 4322, sse = 4323, shards = 4324 }
  paths_by_role = { ws = ["/ws"], sse = ["/events"], shards = ["/shards", "/shards/*"] }
  # The tier that serves a role; a role belongs to one tier.
  tier_by_role = merge([for name, tier in var.tiers : { for role in tier.roles : role => name }]...)

  settings = {
    PYLON_CORS_ORIGIN      = var.web_origin
    PYLON_TRUST_PROXY_HOPS = "1"
    PYLON_DRAIN_DELAY_S    = "15"
    PYLON_PUBLIC_URL       = "https://${var.domain}"
    PYLON_WS_URL           = "wss://${var.domain}/ws"
    PYLON_SSE_URL          = "https://${var.domain}/events"
    PYLON_SHARD_URL        = "wss://${var.domain}/shards"
  }
}

resource "aws_security_group" "tasks" {
  name        = "${var.name}-tasks"
  description = "Tasks of Pylon"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "tasks" {
  security_group_id            = aws_security_group.tasks.id
  description                  = "The ports of the roles, from the load balancer"
  referenced_security_group_id = aws_security_group.balancer.id
  ip_protocol                  = "tcp"
  from_port                    = 4321
  to_port                      = 4324
}

resource "aws_vpc_security_group_egress_rule" "everywhere" {
  # The database, the registry of images, mail and sign-in providers.
  security_group_id = aws_security_group.tasks.id
  description       = "Database, images, mail and sign-in providers"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}

resource "aws_cloudwatch_log_group" "pylon" {
  name              = "/ecs/${var.name}"
  retention_in_days = var.log_retention_days
  kms_key_id        = aws_kms_key.pylon.arn
}

resource "aws_ecs_cluster" "pylon" {
  name = var.name
  setting {
    name  = "containerInsights"
    value = "enabled"
  }
}

data "aws_iam_policy_document" "tasks" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["ecs-tasks.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "secrets" {
  statement {
    actions   = ["secretsmanager:GetSecretValue"]
    resources = [for secret in aws_secretsmanager_secret.pylon : secret.arn]
  }
  statement {
    actions   = ["kms:Decrypt"]
    resources = [aws_kms_key.pylon.arn]
  }
}

resource "aws_iam_role" "execution" {
  name               = "${var.name}-execution"
  assume_role_policy = data.aws_iam_policy_document.tasks.json
}

resource "aws_iam_role_policy_attachment" "execution" {
  role       = aws_iam_role.execution.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/service-role/AmazonECSTaskExecutionRolePolicy"
}

resource "aws_iam_role_policy" "secrets" {
  name   = "secrets"
  role   = aws_iam_role.execution.id
  policy = data.aws_iam_policy_document.secrets.json
}

# The server itself may do nothing in AWS.
resource "aws_iam_role" "task" {
  name               = "${var.name}-task"
  assume_role_policy = data.aws_iam_policy_document.tasks.json
}

resource "aws_ecs_task_definition" "tier" {
  for_each                 = var.tiers
  family                   = "${var.name}-${each.key}"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = each.value.cpu
  memory                   = each.value.memory
  execution_role_arn       = aws_iam_role.execution.arn
  task_role_arn            = aws_iam_role.task.arn

  dynamic "volume" {
    for_each = ["data", "run", "tmp"]
    content {
      name = volume.value
    }
  }

  container_definitions = jsonencode([{
    name                   = "pylon"
    image                  = var.image
    essential              = true
    command                = ["start"]
    user                   = "10001:10001"
    readonlyRootFilesystem = true
    stopTimeout            = 120
    ulimits                = [{ name = "nofile", softLimit = 65536, hardLimit = 65536 }]
    portMappings           = [for role in each.value.roles : { containerPort = local.port_by_role[role] }]
    environment = [
      for key, value in merge(local.settings, { PYLON_ROLES = join(",", each.value.roles) }) : { name = key, value = value }
    ]
    secrets = [for key, secret in aws_secretsmanager_secret.pylon : { name = key, valueFrom = secret.arn }]
    mountPoints = [
      { sourceVolume = "data", containerPath = "/data" },
      { sourceVolume = "run", containerPath = "/run/pylon" },
      { sourceVolume = "tmp", containerPath = "/tmp" },
    ]
    # A quarter of a vCPU needs up to 20 s for its start.
    healthCheck = {
      command     = ["CMD", "pylonctl", "status", "--ready"]
      interval    = 30
      timeout     = 15
      retries     = 3
      startPeriod = 60
    }
    logConfiguration = {
      logDriver = "awslogs"
      options = {
        awslogs-group         = aws_cloudwatch_log_group.pylon.name
        awslogs-region        = data.aws_region.current.region
        awslogs-stream-prefix = each.key
      }
    }
  }])
}

resource "aws_ecs_service" "tier" {
  # checkov:skip=CKV_AWS_333: public addresses are for subnets without a NAT gateway, if you choose them
  for_each                          = var.tiers
  name                              = each.key
  cluster                           = aws_ecs_cluster.pylon.id
  task_definition                   = aws_ecs_task_definition.tier[each.key].arn
  desired_count                     = each.value.min
  launch_type                       = "FARGATE"
  platform_version                  = "LATEST"
  health_check_grace_period_seconds = 60
  propagate_tags                    = "SERVICE"

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  network_configuration {
    subnets          = var.private_subnets
    security_groups  = [aws_security_group.tasks.id]
    assign_public_ip = var.assign_public_ip
  }

  dynamic "load_balancer" {
    for_each = each.value.roles
    content {
      target_group_arn = aws_lb_target_group.role[load_balancer.value].arn
      container_name   = "pylon"
      container_port   = local.port_by_role[load_balancer.value]
    }
  }

  lifecycle {
    ignore_changes = [desired_count] # autoscaling sets it
  }

  depends_on = [aws_lb_listener.https, aws_rds_cluster_instance.pylon]
}

resource "aws_appautoscaling_target" "tier" {
  for_each           = { for name, tier in var.tiers : name => tier if tier.max > tier.min }
  service_namespace  = "ecs"
  scalable_dimension = "ecs:service:DesiredCount"
  resource_id        = "service/${aws_ecs_cluster.pylon.name}/${aws_ecs_service.tier[each.key].name}"
  min_capacity       = each.value.min
  max_capacity       = each.value.max
}

resource "aws_appautoscaling_policy" "tier" {
  for_each           = aws_appautoscaling_target.tier
  name               = "cpu"
  policy_type        = "TargetTrackingScaling"
  service_namespace  = each.value.service_namespace
  scalable_dimension = each.value.scalable_dimension
  resource_id        = each.value.resource_id

  target_tracking_scaling_policy_configuration {
    target_value       = 60
    scale_in_cooldown  = 600 # sockets that move cost a replay each
    scale_out_cooldown = 60
    predefined_metric_specification {
      predefined_metric_type = "ECSServiceAverageCPUUtilization"
    }
  }
}
