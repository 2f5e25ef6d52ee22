output "url" {
  description = "Base URL for clients."
  value       = "https://${var.domain}"
}

output "balancer_arn" {
  description = "The load balancer, for a firewall of your own."
  value       = aws_lb.pylon.arn
}

output "secret_arns" {
  description = "The secrets, by the setting that they are."
  value       = { for key, secret in aws_secretsmanager_secret.pylon : key => secret.arn }
}
