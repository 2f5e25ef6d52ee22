/// <reference path="./.sst/platform/config.d.ts" />

// Pylon on ECS and Aurora by SST, one stack for each stage:
//   npx sst secret set SecretKey "$(openssl rand -hex 32)" --stage production
//   npx sst secret set AdminToken "$(openssl rand -hex 32)" --stage production
//   npx sst deploy --stage production
// The domain must be a zone of Route 53 in the same account.
const DOMAIN = "api.example.com";
const WEB_ORIGIN = "https://app.example.com";

export default $config({
  app(input) {
    return {
      name: "pylon",
      home: "aws",
      removal: input.stage === "production" ? "retain" : "remove",
      protect: input.stage === "production",
    };
  },
  async run() {
    const isProduction = $app.stage === "production";
    const domain = isProduction ? DOMAIN : `${$app.stage}.${DOMAIN}`;
    const secretKey = new sst.Secret("SecretKey");
    const adminToken = new sst.Secret("AdminToken");
    const metricsToken = new sst.Secret("MetricsToken");

    const vpc = new sst.aws.Vpc("Vpc", { nat: "managed" });
    const database = new sst.aws.Aurora("Database", {
      engine: "postgres",
      vpc,
      // Pylon asks the database once a second, so it never pauses at 0 ACU.
      scaling: { min: "0.5 ACU", max: isProduction ? "8 ACU" : "1 ACU" },
      replicas: isProduction ? 1 : 0,
      transform: {
        cluster: {
          storageEncrypted: true,
          deletionProtection: isProduction,
          backupRetentionPeriod: isProduction ? 14 : 1,
        },
      },
    });
    const cluster = new sst.aws.Cluster("Cluster", { vpc });

    // One service with all roles. Tiers: one such service for each role, each with its PYLON_ROLES.
    const service = new sst.aws.Service("Pylon", {
      cluster,
      image: { context: "../..", dockerfile: "deploy/docker/Dockerfile" },
      cpu: "0.5 vCPU",
      memory: "1 GB",
      scaling: { min: isProduction ? 2 : 1, max: isProduction ? 8 : 1, cpuUtilization: 60 },
      command: ["start"],
      environment: {
        DATABASE_URL: $interpolate`postgresql://${database.username}:${database.password}@${database.host}:${database.port}/${database.database}?sslmode=require`,
        PYLON_SECRET_KEY: secretKey.value,
        PYLON_ADMIN_TOKEN: adminToken.value,
        PYLON_METRICS_TOKEN: metricsToken.value,
        PYLON_CORS_ORIGIN: WEB_ORIGIN,
        PYLON_TRUST_PROXY_HOPS: "1",
        PYLON_DRAIN_DELAY_S: "15",
        PYLON_PUBLIC_URL: `https://${domain}`,
        PYLON_WS_URL: `wss://${domain}/ws`,
        PYLON_SSE_URL: `https://${domain}/events`,
        PYLON_SHARD_URL: `wss://${domain}/shards`,
      },
      health: {
        command: ["CMD", "pylonctl", "status", "--ready"],
        startPeriod: "60 seconds",
        interval: "30 seconds",
        timeout: "15 seconds",
        retries: 3,
      },
      loadBalancer: {
        domain,
        rules: [
          { listen: "443/https", forward: "4321/http" },
          { listen: "443/https", forward: "4322/http", conditions: { path: "/ws" } },
          { listen: "443/https", forward: "4323/http", conditions: { path: "/events" } },
          { listen: "443/https", forward: "4324/http", conditions: { path: "/shards*" } },
        ],
        health: {
          "4321/http": { path: "/readyz", interval: "10 seconds" },
          "4322/http": { path: "/", successCodes: "200-499" },
          "4323/http": { path: "/", successCodes: "200-499" },
          "4324/http": { path: "/", successCodes: "200-499" },
        },
      },
      transform: {
        loadBalancer: { idleTimeout: 4000 }, // Pylon pings every 25 s
        target: { deregistrationDelay: 60 },
      },
    });
    return { url: service.url };
  },
});
