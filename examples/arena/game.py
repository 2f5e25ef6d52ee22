"""A small top-down game: run, collect stars. The server decides, pages predict."""

import msgspec

from pylon import SimState, shard

WIDTH, HEIGHT, SPEED, RADIUS, STARS = 800.0, 500.0, 220.0, 14.0, 8


class Steer(msgspec.Struct):
    """Where to: each from -1 to 1. It holds until the next one."""

    x: float
    y: float


@shard("arena", tick_rate_hz=20, max_subscribers=64, allow_reconnection_s=10)
class Arena(SimState):
    Input = Steer

    def __init__(self, context):
        super().__init__(context)
        self.players = {}
        self.stars = [self.somewhere() for _ in range(STARS)]

    def somewhere(self):
        return [self.random.uniform(20, WIDTH - 20), self.random.uniform(20, HEIGHT - 20)]

    def joined(self, sid, auth):
        x, y = self.somewhere()
        self.players[sid] = {"x": x, "y": y, "vx": 0.0, "vy": 0.0, "score": 0}

    def left(self, sid):
        del self.players[sid]

    def apply_input(self, sid, steer, received_at_s):
        length = max(1.0, (steer.x**2 + steer.y**2) ** 0.5)  # nobody runs faster by cheating
        self.players[sid] |= {"vx": steer.x / length * SPEED, "vy": steer.y / length * SPEED}

    def tick(self, dt_s):
        for player in self.players.values():
            player["x"] = min(WIDTH - RADIUS, max(RADIUS, player["x"] + player["vx"] * dt_s))
            player["y"] = min(HEIGHT - RADIUS, max(RADIUS, player["y"] + player["vy"] * dt_s))
            for star in self.stars:
                if (star[0] - player["x"]) ** 2 + (star[1] - player["y"]) ** 2 < 400:
                    star[:] = self.somewhere()
                    player["score"] += 1

    def snapshot(self):
        return {"players": self.players, "stars": self.stars}
