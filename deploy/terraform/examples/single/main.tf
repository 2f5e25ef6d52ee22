# One task with all roles, in public subnets, so that no NAT gateway is needed.
provider "aws" {
  region = var.region
}

module "pylon" {
  source = "../../modules/pylon"

  domain           = var.domain
  web_origin       = var.web_origin
  zone_id          = var.zone_id
  certificate_arn  = var.certificate_arn
  image            = var.image
  vpc_id           = var.vpc_id
  public_subnets   = var.public_subnets
  private_subnets  = var.public_subnets
  assign_public_ip = true

  database_instances = 1
}
