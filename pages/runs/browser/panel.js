// A place on the page for one chart of the runs, whichever is there first, the place or what is drawn.
export default function ({ data, parentElement }) {
  const hub = (window.upvitRuns ??= {}), host = parentElement.querySelector("figure"), { chart, height } = data;
  hub.hosts ??= {};
  if (hub.hosts[chart] === host) return;
  Object.assign(host.dataset, { chart, height });
  hub.hosts[chart] = host;
  hub.live?.place(chart, host);
  return () => { if (hub.hosts[chart] === host) { delete hub.hosts[chart]; hub.live?.leave(chart); } };
}
