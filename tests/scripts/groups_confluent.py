import sys,time,threading,subprocess,os,signal
from confluent_kafka import Producer, Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
B="127.0.0.1:21091,127.0.0.1:21092,127.0.0.1:21093"
a=AdminClient({"bootstrap.servers":B})
for t,f in a.create_topics([NewTopic("orders",6,3)]).items():
    try: f.result(30); print("created",t)
    except Exception as e: print("create",e)
def produce(n,tag):
    p=Producer({"bootstrap.servers":B,"acks":"all","enable.idempotence":True})
    bad=[]
    for i in range(n):
        p.produce("orders",key=str(i),value=f"{tag}-{i}",on_delivery=lambda e,m: bad.append(e) if e else None); p.poll(0)
    p.flush(60); print("produced",n,"failed",len(bad))
class C(threading.Thread):
    def __init__(s,name,strategy="range",**kw):
        super().__init__(daemon=True); s.n=name; s.got=[]; s.assigned=0; s.stop=False; s.events=[]
        s.c=Consumer({"bootstrap.servers":B,"group.id":"readers","auto.offset.reset":"earliest","session.timeout.ms":6000,"partition.assignment.strategy":strategy,"auto.commit.interval.ms":500,**kw})
        s.c.subscribe(["orders"],on_assign=lambda c,p:s.events.append(("+",time.time(),len(p))),on_revoke=lambda c,p:s.events.append(("-",time.time(),len(p))),on_lost=lambda c,p:s.events.append(("lost",time.time(),len(p))))
        s.start()
    def run(s):
        while not s.stop:
            m=s.c.poll(0.2)
            s.assigned=len(s.c.assignment())
            if m is None: continue
            if m.error(): print(s.n,"error",m.error()); continue
            s.got.append(m.value().decode())
        s.c.close()
def wait(what,f,t=90):
    b=time.time()
    while time.time()-b<t:
        if f(): print("ok",what,"%.1fs"%(time.time()-b)); return
        time.sleep(0.05)
    print("TIMEOUT",what); os._exit(1)
strategy=sys.argv[1] if len(sys.argv)>1 else "range"
c1=C("c1",strategy); wait("one has 6",lambda:c1.assigned==6)
produce(300,"a"); wait("c1 reads a",lambda:len([x for x in c1.got if x.startswith("a")])>=300)
c2=C("c2",strategy); wait("shared 3+3",lambda:c1.assigned==3 and c2.assigned==3)
produce(300,"b"); wait("both read b",lambda:len(set(x for x in c1.got+c2.got if x.startswith("b")))==300)
time.sleep(1.5)
c1.stop=True; c1.join(20); wait("c2 has 6 after c1 left",lambda:c2.assigned==6)
g=a.describe_consumer_groups(["readers"])["readers"].result(20); print("described",g.state,len(g.members),[len(m.assignment.topic_partitions) for m in g.members])
print("listed",[x.group_id for x in a.list_consumer_groups().result().valid])
coord=g.coordinator.id; print("coordinator",coord)
D=sys.argv[2] if len(sys.argv)>2 else None
if D:
    pid=int(open(f"{D}/pid{coord}").read()); os.kill(pid,9); print("killed coordinator",coord); t0=time.time()
    produce(300,"c"); wait("c2 reads c after the coordinator's death",lambda:len(set(x for x in c2.got if x.startswith("c")))==300)
    c=Consumer({"bootstrap.servers":B,"group.id":"readers"})
    time.sleep(2)
c2.stop=True; c2.join(30); 
print("events c2",[(k,n) for k,_,n in c2.events])
c3=C("c3",strategy); wait("c3 has 6",lambda:c3.assigned==6); produce(100,"d"); wait("c3 reads d",lambda:len([x for x in c3.got if x.startswith("d")])>=100)
old=[x for x in c3.got if not x.startswith("d")]; print("read again by c3:",len(old))
c3.stop=True; c3.join(20)
print("deleted",[ (k,f.exception()) for k,f in a.delete_consumer_groups(["readers"]).items()])
