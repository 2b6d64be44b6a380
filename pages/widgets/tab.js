// The tab's title, and notifications of the browser for whoever looks at another tab.
export default function ({ data, parentElement }) {
  const told = (window.upvitTold ??= new Set()), button = parentElement.querySelector(".tell");
  const may = () => "Notification" in window && Notification.permission;
  document.title = data.title;
  for (const { key, line } of data.ended) {
    if (told.has(key + line)) continue;
    told.add(key + line);
    if (may() === "granted" && document.hidden) new Notification(line);
  }
  button.hidden = !data.busy || may() !== "default";
  button.onclick = () => Notification.requestPermission().then(() => { button.hidden = true; });
}
