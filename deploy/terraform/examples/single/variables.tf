variable "region" {
  description = "AWS region."
  type        = string
  default     = "eu-central-1"
}

variable "domain" {
  description = "The name that clients use."
  type        = string
}

variable "web_origin" {
  description = "Origin of the web app."
  type        = string
}

variable "zone_id" {
  description = "Route 53 zone of the domain."
  type        = string
}

variable "certificate_arn" {
  description = "ACM certificate of the domain."
  type        = string
}

variable "image" {
  description = "The image, named by its digest."
  type        = string
}

variable "vpc_id" {
  description = "VPC of everything."
  type        = string
}

variable "public_subnets" {
  description = "Public subnets, in two zones at least."
  type        = list(string)
}
