// A chat over live windows: the page keeps what it shows, and no replica of the data.
import { pylon } from "/client/pylon.js";

const PAGE = 50;
const app = pylon({ name: "chat" });
const people = app.live("Person");
const rooms = app.live("Room", { order: { createdAt: "asc" } });
let members = null;              // of the open room
let messages = null;
let presence = null;             // who is there at the moment; only members may know
let openRoom = null;             // the id of the room on the screen
let wasListed = false;           // whether the list of rooms has had it: a new one comes later
let askedName = false;

const el = id => document.getElementById(id);
const ownMember = () => members.rows.find(member => member.userId === app.auth.userId);

function attempt(write) {
  el("error").textContent = "";
  return write().catch(() => {});   // a refused write comes to the listener below, too
}

app.on("error", error => { el("error").textContent = error.message; });
app.on("status", ({ state, error }) => {
  el("state").textContent = state === "live" || !error ? state : `${state}: ${error.message}`;
});

function nameOf(userId) {
  const person = people.rows.find(row => row.userId === userId);
  return person ? person.name : "somebody";
}

// --- The screen -------------------------------------------------------------------------

function enter(roomId) {
  if (roomId === openRoom) return;
  depart();
  members?.close();
  messages?.close();
  openRoom = location.hash = roomId;
  wasListed = false;
  members = app.live("Member", { where: { roomId } });
  messages = app.live("Message", { where: { roomId }, order: { sentAt: "desc", id: "desc" }, limit: PAGE });
  members.subscribe(renderAll);
  messages.subscribe(renderMessages);
}

function depart() {
  presence?.leave();
  presence = null;
}

function renderAll() {
  if (people.state === "live" && !people.rows.some(row => row.userId === app.auth.userId)) askName();
  renderRooms();
  if (!openRoom) return;
  renderMembers();
  renderMessages();
}

function renderRooms() {
  const room = rooms.rows.find(each => each.id === openRoom);
  if (wasListed && !room && rooms.state === "live") {   // it was closed to us
    depart();
    openRoom = location.hash = "";
  }
  wasListed = Boolean(room);
  el("rooms").replaceChildren(...rooms.rows.map(room => {
    const button = document.createElement("button");
    button.textContent = (room.private ? "private: " : "# ") + room.name;
    if (room.id === openRoom) button.setAttribute("aria-current", "true");
    button.onclick = () => enter(room.id);
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
  el("room").hidden = el("people").hidden = !room;
  if (room) el("room-title").textContent = room.name;
}

function renderMembers() {
  const room = rooms.rows.find(each => each.id === openRoom);
  if (!room) return;
  const isOwner = room.ownerId === app.auth.userId;
  const own = ownMember();
  if (!own) depart();
  else if (!presence) {
    presence = app.room("room:" + openRoom);   // the policy "presence" is for these rooms
    presence.subscribe(() => queueMicrotask(renderMembers));
  }
  const present = new Set(presence?.members.map(member => member.user_id));
  el("join").hidden = Boolean(own);
  el("leave").hidden = !own;
  el("send").hidden = !own;
  el("members").replaceChildren(...members.rows.map(member => {
    const item = document.createElement("li");
    item.classList.toggle("here", present.has(member.userId));
    const name = document.createElement("span");
    name.textContent = nameOf(member.userId);
    item.append(name);
    if (isOwner && member !== own) {
      const button = document.createElement("button");
      button.textContent = "Remove";
      button.onclick = () => attempt(() => app.delete("Member", member.id));
      item.append(button);
    }
    return item;
  }));
  const others = people.rows.filter(person => !members.rows.some(member => member.userId === person.userId));
  el("add-member").hidden = !isOwner || others.length === 0;
  el("person").replaceChildren(...others.map(person => new Option(person.name, person.userId)));
}

function renderMessages() {
  const list = el("messages");
  const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  list.replaceChildren(...[...messages.rows].reverse().map(message => {
    const item = document.createElement("li");
    const author = document.createElement("b");
    author.textContent = nameOf(message.authorId ?? app.auth.userId);   // until the server has given it
    const text = document.createElement("span");
    text.textContent = message.text;
    const time = document.createElement("time");
    time.dateTime = message.sentAt ?? "";   // the server gives the time
    time.textContent = message.sentAt ? new Date(message.sentAt).toLocaleTimeString() : "sending …";
    item.append(author, text, time);
    return item;
  }));
  el("older").hidden = !messages.snapshot.more;
  if (isAtEnd) list.scrollTop = list.scrollHeight;
}

function askName() {
  if (askedName) return;
  askedName = true;
  el("who").showModal();
}

el("name-form").onsubmit = () => attempt(() => app.insert("Person", { name: el("name").value }));

el("new-room").onsubmit = event => {
  event.preventDefault();
  const room = { id: app.newId(), name: el("room-name").value, private: el("room-private").checked };
  el("new-room").reset();
  attempt(async () => {
    await app.insert("Room", room);
    await app.insert("Member", { roomId: room.id, userId: app.auth.userId });
    enter(room.id);
  });
};

el("join").onclick = () => attempt(() => app.insert("Member", { roomId: openRoom, userId: app.auth.userId }));
el("leave").onclick = () => attempt(() => app.delete("Member", ownMember().id));

el("add-member").onsubmit = event => {
  event.preventDefault();
  attempt(() => app.insert("Member", { roomId: openRoom, userId: el("person").value }));
};

el("send").onsubmit = event => {
  event.preventDefault();
  const text = el("text").value;
  el("text").value = "";
  attempt(() => app.insert("Message", { roomId: openRoom, text }));
};

el("older").onclick = () => messages.more(PAGE);

app.auth.guest().then(() => {
  people.subscribe(renderAll);
  rooms.subscribe(renderAll);
  if (location.hash) enter(location.hash.slice(1));
}, error => { el("state").textContent = error.message; });
