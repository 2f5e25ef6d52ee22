"use strict";
// A chat over live queries: the page keeps what it shows, and no replica of the data.
const PAGE = 50;
const live = new Map();          // sub_id -> {rows: [...], onChange}
let session = JSON.parse(localStorage.getItem("chat-session") || "null");
let socket = null;
let wsUrl = null;
let retryMs = 500;
let openRoom = null;             // the id of the room on the screen
let wasListed = false;           // whether the list of rooms has had it: a new one comes later
let askedName = false;
let presentIn = null;            // the id of the room in which the page has presence
let present = new Set();         // the user ids of those who are there at the moment

const el = id => document.getElementById(id);
const show = text => { el("state").textContent = text; };

async function api(method, path, body) {
  const headers = {};
  if (session) headers.Authorization = "Bearer " + session.token;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, {method, headers, body: body === undefined ? undefined : JSON.stringify(body)});
  const data = await answer.json();
  if (!answer.ok) throw new Error(data.error ? data.error.message : answer.statusText);
  return data;
}

async function attempt(work) {
  el("error").textContent = "";
  try { return await work(); } catch (error) { el("error").textContent = error.message; }
}

async function signIn() {
  if (session) {
    const me = await api("GET", "/api/auth/me");
    if (me.user_id === session.user_id) return;
  }
  session = null;
  session = await api("POST", "/api/auth/guest", {});
  localStorage.setItem("chat-session", JSON.stringify(session));
}

// --- Live queries -----------------------------------------------------------------------

function subscribe(subId, entity, filter, onChange) {
  live.set(subId, {entity, filter, onChange, rows: [], isNew: true});
  say({type: "subscribe", sub_id: subId, entity, filter});
}

function unsubscribe(subId) {
  if (live.delete(subId)) say({type: "unsubscribe", sub_id: subId});
}

function say(message) {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function receive(message) {
  if (message.room) return receivePresence(message);
  const query = live.get(message.sub_id);
  if (!query) return;
  if (message.type === "error") {
    el("error").textContent = message.message;
    return;
  }
  if (message.type === "subscribed") {
    if (query.isNew || query.isComplete) query.rows = [];   // a result replaces the one before
    query.rows.push(...message.rows);
    query.isNew = false;
    query.isComplete = message.last;
  } else if (message.type === "more") {
    query.rows.push(...message.rows);
  } else if (message.type === "diff") {
    query.rows = query.rows.filter(row => row.id !== message.row_id);
    if (message.kind !== "delete") {
      // A window says after which row the new one stands; other queries have no order.
      const at = "after" in message && message.after === null ? 0
        : "after" in message ? query.rows.findIndex(row => row.id === message.after) + 1
        : query.rows.length;
      query.rows.splice(at, 0, message.data);
    }
  }
  query.onChange();
}

// --- Presence ----------------------------------------------------------------------------

const presenceRoom = roomId => "room:" + roomId;   // the policy "presence" is for these rooms

async function arrive(roomId) {
  presentIn = roomId;
  await api("POST", "/api/rooms/join", {room: presenceRoom(roomId)});
  if (presentIn === roomId) say({type: "room-subscribe", room: presenceRoom(roomId)});
}

function depart() {
  if (!presentIn) return;
  attempt(() => api("POST", "/api/rooms/leave", {room: presenceRoom(presentIn)}));
  presentIn = null;
  present = new Set();
}

function receivePresence(message) {
  if (!presentIn || message.room !== presenceRoom(presentIn)) return;
  if (message.type === "room-snapshot") present = new Set(message.members.map(member => member.user_id));
  else if (message.action === "join") present.add(message.member.user_id);
  else if (message.action === "leave") present.delete(message.member.user_id);
  else if (message.type === "error") present = new Set();   // put out: the row of the member goes too
  renderMembers();
}

async function connect() {
  try {
    await signIn();
  } catch (error) {
    return later(error.message);
  }
  socket = new WebSocket(wsUrl + "?changes=0", ["bearer." + encodeURIComponent(session.token)]);
  socket.onopen = () => {
    retryMs = 500;
    show("live");
    presentIn = null;
    for (const [subId, query] of live) {
      query.isNew = true;
      say({type: "subscribe", sub_id: subId, entity: query.entity, filter: query.filter});
    }
    if (!live.has("rooms")) {
      subscribe("people", "Person", {}, renderAll);
      subscribe("rooms", "Room", {}, renderRooms);
    }
  };
  socket.onmessage = message => {
    if (typeof message.data === "string") receive(JSON.parse(message.data));
  };
  socket.onclose = () => later("connection lost");
}

function later(why) {
  show(why + "; next attempt in " + (retryMs / 1000) + " s");
  setTimeout(connect, retryMs * (0.5 + Math.random() / 2));
  retryMs = Math.min(retryMs * 2, 15000);
}

const rowsOf = subId => (live.get(subId) || {rows: []}).rows;

function nameOf(userId) {
  const person = rowsOf("people").find(row => row.userId === userId);
  return person ? person.name : "somebody";
}

// --- The screen -------------------------------------------------------------------------

function enter(roomId) {
  depart();
  openRoom = roomId;
  wasListed = false;
  unsubscribe("members");
  unsubscribe("messages");
  subscribe("members", "Member", {roomId}, renderAll);
  subscribe("messages", "Message", {roomId, $order: {sentAt: "desc"}, $limit: PAGE}, renderMessages);
  renderAll();
}

function renderAll() {
  if (!live.get("people").isNew && !rowsOf("people").some(row => row.userId === session.user_id)) askName();
  renderRooms();
  renderMembers();
  renderMessages();
}

function renderRooms() {
  const rooms = [...rowsOf("rooms")].sort((a, b) => a.createdAt < b.createdAt ? -1 : 1);
  const isListed = rooms.some(room => room.id === openRoom);
  if (wasListed && !isListed && !live.get("rooms").isNew) openRoom = null;   // it was closed to us
  wasListed = isListed;
  el("rooms").replaceChildren(...rooms.map(room => {
    const button = document.createElement("button");
    button.textContent = (room.private ? "private: " : "# ") + room.name;
    if (room.id === openRoom) button.setAttribute("aria-current", "true");
    button.onclick = () => enter(room.id);
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
  const room = rooms.find(each => each.id === openRoom);
  el("room").hidden = el("people").hidden = !room;
  if (room) el("room-title").textContent = room.name;
}

function renderMembers() {
  const room = rowsOf("rooms").find(each => each.id === openRoom);
  if (!room) return;
  const members = rowsOf("members");
  const isOwner = room.ownerId === session.user_id;
  const own = members.find(member => member.userId === session.user_id);
  if (!own) presentIn = null;
  else if (own.roomId === openRoom && presentIn !== openRoom) attempt(() => arrive(openRoom));
  el("join").hidden = Boolean(own);
  el("leave").hidden = !own;
  el("send").hidden = !own;
  el("members").replaceChildren(...members.map(member => {
    const item = document.createElement("li");
    item.classList.toggle("here", present.has(member.userId));
    const name = document.createElement("span");
    name.textContent = nameOf(member.userId);
    item.append(name);
    if (isOwner && member !== own) {
      const button = document.createElement("button");
      button.textContent = "Remove";
      button.onclick = () => attempt(() => api("DELETE", "/api/entities/Member/" + member.id));
      item.append(button);
    }
    return item;
  }));
  const others = rowsOf("people").filter(person => !members.some(member => member.userId === person.userId));
  el("add-member").hidden = !isOwner || others.length === 0;
  el("person").replaceChildren(...others.map(person => new Option(person.name, person.userId)));
}

function renderMessages() {
  const messages = rowsOf("messages");
  const list = el("messages");
  const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  list.replaceChildren(...[...messages].reverse().map(message => {
    const item = document.createElement("li");
    const author = document.createElement("b");
    author.textContent = nameOf(message.authorId);
    const text = document.createElement("span");
    text.textContent = message.text;
    const time = document.createElement("time");
    time.dateTime = message.sentAt;
    time.textContent = new Date(message.sentAt).toLocaleTimeString();
    item.append(author, text, time);
    return item;
  }));
  el("older").hidden = messages.length < PAGE || messages.length % PAGE !== 0;
  if (isAtEnd) list.scrollTop = list.scrollHeight;
}

function askName() {
  if (askedName) return;
  askedName = true;
  el("who").showModal();
}

el("name-form").onsubmit = () => attempt(() => api("POST", "/api/entities/Person", {name: el("name").value}));

el("new-room").onsubmit = event => {
  event.preventDefault();
  attempt(async () => {
    const room = await api("POST", "/api/entities/Room", {
      name: el("room-name").value, private: el("room-private").checked,
    });
    await api("POST", "/api/entities/Member", {roomId: room.id, userId: session.user_id});
    el("new-room").reset();
    enter(room.id);
  });
};

el("join").onclick = () => attempt(() =>
  api("POST", "/api/entities/Member", {roomId: openRoom, userId: session.user_id}));

el("leave").onclick = () => attempt(() => {
  const own = rowsOf("members").find(member => member.userId === session.user_id);
  return api("DELETE", "/api/entities/Member/" + own.id);
});

el("add-member").onsubmit = event => {
  event.preventDefault();
  attempt(() => api("POST", "/api/entities/Member", {roomId: openRoom, userId: el("person").value}));
};

el("send").onsubmit = event => {
  event.preventDefault();
  attempt(async () => {
    await api("POST", "/api/entities/Message", {roomId: openRoom, text: el("text").value});
    el("text").value = "";
  });
};

el("older").onclick = () => say({type: "more", sub_id: "messages", count: PAGE});

(async () => {
  try {
    const config = await api("GET", "/api/client-config");
    wsUrl = config.urls.ws;
    connect();
  } catch (error) {
    show(error.message);
  }
})();
