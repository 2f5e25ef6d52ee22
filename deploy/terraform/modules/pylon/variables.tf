variable "name" {
  description = "Prefix of the names of all resources."
  type        = string
  default     = "pylon"
}

variable "domain" {
  description = "The name that clients use, for example api.example.com."
  type        = string
}

variable "web_origin" {
  description = "Origin of the web app (PYLON_CORS_ORIGIN), for example https://app.example.com."
  type        = string
}

variable "zone_id" {
  description = "Route 53 zone that gets the record of the domain."
  type        = string
}

variable "certificate_arn" {
  description = "ACM certificate of the domain, in this region."
  type        = string
}

variable "image" {
  description = "The image of deploy/docker/Dockerfile with the app's manifest in /app, named by its digest."
  type        = string
}

variable "vpc_id" {
  description = "VPC of everything."
  type        = string
}

variable "public_subnets" {
  description = "Subnets of the load balancer, in two zones at least."
  type        = list(string)
}

variable "private_subnets" {
  description = "Subnets of the tasks and the database, in two zones at least."
  type        = list(string)
}

variable "assign_public_ip" {
  description = "Give tasks public addresses, for public subnets without a NAT gateway."
  type        = bool
  default     = false
}

variable "tiers" {
  description = "Services by name: the roles of their tasks, vCPU units, MiB, and how many tasks there may be."
  type = map(object({
    roles  = list(string)
    cpu    = number
    memory = number
    min    = number
    max    = number
  }))
  default = {
    all = { roles = ["http", "ws", "sse", "shards"], cpu = 256, memory = 512, min = 1, max = 1 }
  }

  validation {
    condition = alltrue([
      for tier in values(var.tiers) : alltrue([for role in tier.roles : contains(["http", "ws", "sse", "shards"], role)])
    ])
    error_message = "Roles are http, ws, sse and shards."
  }
}

variable "database_instances" {
  description = "Instances of Aurora; the second one takes over when the first fails."
  type        = number
  default     = 2
}

variable "database_min_acu" {
  description = "Least capacity of Aurora, in ACU. Pylon asks once a second, so it never pauses at 0."
  type        = number
  default     = 0.5
}

variable "database_max_acu" {
  description = "Largest capacity of Aurora, in ACU."
  type        = number
  default     = 4
}

variable "log_retention_days" {
  description = "Days for which CloudWatch keeps logs."
  type        = number
  default     = 365
}

variable "alarm_topic_arn" {
  description = "SNS topic of the alarms; empty means that alarms tell nobody."
  type        = string
  default     = ""
}
