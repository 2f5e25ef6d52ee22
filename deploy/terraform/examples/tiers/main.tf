# A service for each role, scaled separately.
provider "aws" {
  region = var.region
}

module "pylon" {
  source = "../../modules/pylon"

  domain          = var.domain
  web_origin      = var.web_origin
  zone_id         = var.zone_id
  certificate_arn = var.certificate_arn
  image           = var.image
  vpc_id          = var.vpc_id
  public_subnets  = var.public_subnets
  private_subnets = var.private_subnets

  tiers = {
    http   = { roles = ["http"], cpu = 512, memory = 1024, min = 2, max = 8 }
    ws     = { roles = ["ws"], cpu = 512, memory = 1024, min = 2, max = 8 }
    sse    = { roles = ["sse"], cpu = 256, memory = 512, min = 1, max = 4 }
    shards = { roles = ["shards"], cpu = 512, memory = 1024, min = 1, max = 1 }
  }
}
